//! Weights that have left a card and wait in the host's memory: back from there they are a transfer away,
//! and not a file.

use std::collections::VecDeque;

use crate::engine::{
    Layers,
    checkpoint::{Error, Home},
};

/// What left at one time, the one that was used last at the end. It stays when it is back on the card,
/// so that the next time it leaves nothing has to be copied.
#[derive(Default)]
pub struct HostCache {
    limit_bytes: u64,
    waiting: VecDeque<Layers>,
}

impl HostCache {
    /// How much may wait; 0: nothing.
    pub fn set_limit(&mut self, bytes: u64) {
        self.limit_bytes = bytes;
        self.make_room(0);
    }

    pub fn bytes(&self) -> u64 {
        self.waiting.iter().map(Layers::bytes).sum()
    }

    /// Takes in what is about to leave, if there is room when all others have gone.
    pub fn keep(&mut self, leaving: &Layers) {
        if self.limit_bytes == 0 {
            return;
        }
        let _ = self.touch(leaving);
        let new = self.waiting.iter().fold(leaving.clone(), |new, waiting| new.without(waiting));
        if new.is_empty() || new.bytes() > self.limit_bytes {
            return;
        }
        self.make_room(new.bytes());
        match new.moved(Home::Host) {
            Ok(there) if !there.is_empty() => self.waiting.push_back(there),
            Ok(_) => {}
            Err(error) => tracing::warn!("weights are not kept in the host's memory: {error}"),
        }
    }

    /// Of what is needed, what waits here, back on the card.
    ///
    /// # Errors
    /// The card has no room.
    pub fn bring(&mut self, needed: &Layers) -> Result<Layers, Error> {
        self.touch(needed).moved(Home::Device)
    }

    /// What waits of these; it is now what was used last.
    fn touch(&mut self, layers: &Layers) -> Layers {
        let mut found = Layers::default();
        let (mut used, unused): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|waiting| !waiting.in_common_with(layers).is_empty());
        used.iter().for_each(|waiting| found.add(waiting.in_common_with(layers)));
        self.waiting = unused;
        self.waiting.append(&mut used);
        found
    }

    fn make_room(&mut self, bytes: u64) {
        while self.bytes() + bytes > self.limit_bytes && self.waiting.pop_front().is_some() {}
    }
}

#[cfg(all(test, feature = "libtorch"))]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        engine::{Backend, Prepared},
        modes::{CheckpointRef, LoraRef, PipelineSpec},
    };

    fn prepared(strength: f32) -> Prepared {
        let path = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        let (name, lora) = ("models/demo/demo.safetensors", "loras/demo-outline.safetensors");
        let lora =
            LoraRef { name: lora.to_owned(), path: path(lora), strength, adapter_name: None };
        let checkpoint = CheckpointRef { name: name.to_owned(), path: path(name) };
        let spec = PipelineSpec { loras: vec![lora], ..PipelineSpec::of(checkpoint) };
        Prepared::open_on(*Backend::all_exact().last().unwrap(), &spec, &mut Default::default())
            .unwrap()
    }

    #[test]
    fn what_left_comes_back_and_the_oldest_goes() {
        let (plain, styled) = (prepared(0.0), prepared(1.0));
        let load = |it: &Prepared| it.load(Layers::default(), &|_| ()).unwrap();
        let [first, second] = [&plain, &styled].map(load);
        let (own, more) = (first.weights_bytes(), second.layers().without(first.layers()).bytes());
        let mut cache = HostCache::default();
        cache.keep(first.layers());
        assert_eq!(cache.bytes(), 0, "there is no room for anything");
        cache.set_limit(own + more);
        cache.keep(first.layers());
        cache.keep(second.layers());
        assert_eq!(cache.bytes(), own + more, "what both have waits once");
        for (prepared, whole) in [(&plain, own), (&styled, second.weights_bytes())] {
            let back = cache.bring(prepared.layers()).unwrap();
            assert_eq!(back.bytes(), whole);
            assert_eq!(prepared.load(back, &|_| ()).unwrap().cost().bytes, 0);
        }
        // The first one's were used by both.
        cache.set_limit(own);
        assert_eq!(cache.bytes(), own);
        cache.keep(second.layers());
        assert_eq!(cache.bytes(), more, "there is room for one of them");
        cache.set_limit(0);
        assert_eq!(cache.bytes(), 0);
    }
}
