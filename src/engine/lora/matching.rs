//! Whether a LoRA fits a checkpoint: a verdict over names, shapes and metadata. No file is read.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write,
};

use super::{Fault, adapter::Adapter, base::Claim, keys::Targets, sorted::Sorted};
use crate::engine::checkpoint::Module;

/// A LoRA that can be merged into a checkpoint.
#[derive(Debug, PartialEq)]
pub struct Match {
    /// By the canonical name of the module.
    pub adapters: BTreeMap<String, Adapter>,
    /// What the checkpoint has no place for, as the file calls it.
    pub unmatched: Vec<String>,
}

/// A module that both have, in different sizes.
struct Misfit {
    module: String,
    made_for: Vec<usize>,
    found: Vec<usize>,
}

impl Sorted {
    /// Finds each module's place in a checkpoint of a family of that name.
    ///
    /// # Errors
    /// Nothing has a place, or something that has one does not fit there, or the file says that it
    /// is for another family and a part of it has no place.
    pub fn match_to(
        &self,
        modules: &[Module],
        family: &str,
        metadata: &HashMap<String, String>,
    ) -> Result<Match, Fault> {
        if self.adapters.is_empty() {
            return Err(Fault::Empty { tensors: self.strangers.len() });
        }
        let (targets, all) = (Targets::of(modules), self.adapters.len());
        let claim = Claim::of(metadata, self);
        let mut matched = Match { adapters: BTreeMap::new(), unmatched: Vec::new() };
        let mut misfits = Vec::new();
        for (module, adapter) in &self.adapters {
            let Some(target) = targets.find(module) else {
                matched.unmatched.push(module.clone());
                continue;
            };
            if let Err(made_for) = adapter.fits(&target.dims) {
                let module = module.clone();
                misfits.push(Misfit { module, made_for, found: target.dims.clone() });
            } else if matched.adapters.insert(target.canonical.clone(), adapter.clone()).is_some() {
                return Err(Fault::Twice { module: module.clone() });
            }
        }
        let foreign = claim.as_ref().is_some_and(|claim| claim.contradicts(family));
        let has_all = matched.unmatched.is_empty();
        if !matched.adapters.is_empty() && misfits.is_empty() && (has_all || !foreign) {
            // Normalisations and embeddings that came along are not merged, and not passed over.
            let modules =
                self.strangers.iter().map(|name| name.rsplit_once('.').map_or(&**name, |s| s.0));
            let mut modules: Vec<_> = modules.map(str::to_owned).collect();
            modules.dedup();
            matched.unmatched.extend(modules);
            return Ok(matched);
        }
        let placed = matched.adapters.len();
        Err(Fault::Foreign(verdict(claim.as_ref(), family, [placed, all], misfits.first())))
    }
}

/// The sentence that follows the file's name.
fn verdict(
    claim: Option<&Claim>,
    family: &str,
    [placed, all]: [usize; 2],
    misfit: Option<&Misfit>,
) -> String {
    let mut text = match claim {
        Some(claim) if claim.base.name() != family => {
            format!("is {claim}, not for this {family} checkpoint")
        }
        Some(claim) => format!("is {claim}, but does not fit this checkpoint"),
        None => format!("does not fit this {family} checkpoint, and does not say what it is for"),
    };
    let modules = if all == 1 { "module" } else { "modules" };
    let _ = write!(text, "; {placed} of its {all} {modules} found a place");
    if let Some(Misfit { module, made_for, found }) = misfit {
        let _ = write!(
            text,
            ", and '{module}' is made for {made_for:?} where the checkpoint has {found:?}"
        );
    }
    text
}
