//! Files of upscalers (ESRGAN's): one network, [`UPSCALER`], under Real-ESRGAN's names.
//!
//! Canonical names are those of Real-ESRGAN's `RRDBNet`, alone or below `params_ema` or `params`. ESRGAN's
//! own two namings are known besides: that of its repository, and the older one by numbers, which
//! most files of that time have.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Error, Network, Networks,
    file::{Access, Header, TensorFile},
    names::{Names, SAME},
};
use crate::modes::CheckpointRef;

pub const UPSCALER: &str = "upscaler";

/// Opens an upscaler's file.
///
/// # Errors
/// It cannot be read, or is something else.
pub fn open(model: &CheckpointRef) -> Result<Networks, Error> {
    let file = TensorFile::open(&model.name, &model.path, Access::Tensors)?;
    let names = names(&file).ok_or_else(|| Error::NotSupported {
        file: model.name.clone(),
        what: "holds no upscaler that is known here; an RRDBNet (ESRGAN, Real-ESRGAN) is expected"
            .to_owned(),
    })?;
    let network = Network { files: vec![(Arc::new(file), names)] };
    let components = BTreeMap::from([(UPSCALER, network)]);
    Ok(Networks { name: model.name.clone(), components })
}

/// What the file calls its modules, if it is an upscaler's.
pub fn names(file: &Header) -> Option<Names> {
    let has = |name: &str| file.entries.contains_key(name);
    if has("model.0.weight") && file.has_prefix("model.1.sub.") {
        return Some(by_number(file));
    }
    if file.has_prefix("RRDB_trunk.") {
        return Some(by_trunk(file));
    }
    let prefix = ["", "params_ema", "params"].into_iter().find(|prefix| {
        let dot = if prefix.is_empty() { "" } else { "." };
        file.has_prefix(&format!("{prefix}{dot}body.0.rdb1."))
    })?;
    Some(Names::canonical().below(prefix))
}

/// ESRGAN's for ×4, where each module is called by its place in a list of lists.
fn by_number(file: &Header) -> Names {
    let blocks = file.count("model.1.sub.").saturating_sub(1);
    let mut names = Names::default();
    for (block, rdb, conv) in convolutions(blocks) {
        let canonical = format!("body.{block}.rdb{rdb}.conv{conv}");
        names.add(canonical, format!("model.1.sub.{block}.RDB{rdb}.conv{conv}.0"), SAME);
    }
    names.add("conv_body", format!("model.1.sub.{blocks}"), SAME);
    let rest = [("first", 0), ("up1", 3), ("up2", 6), ("hr", 8), ("last", 10)];
    for (conv, number) in rest {
        names.add(format!("conv_{conv}"), format!("model.{number}"), SAME);
    }
    names
}

/// ESRGAN's repository's.
fn by_trunk(file: &Header) -> Names {
    let mut names = Names::default();
    for (block, rdb, conv) in convolutions(file.count("RRDB_trunk.")) {
        let canonical = format!("body.{block}.rdb{rdb}.conv{conv}");
        names.add(canonical, format!("RRDB_trunk.{block}.RDB{rdb}.conv{conv}"), SAME);
    }
    for (canonical, name) in [
        ("conv_body", "trunk_conv"),
        ("conv_up1", "upconv1"),
        ("conv_up2", "upconv2"),
        ("conv_hr", "HRconv"),
    ] {
        names.add(canonical, name, SAME);
    }
    names
}

fn convolutions(blocks: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    let of_block = |block| (1..=3).flat_map(move |rdb| (1..=5).map(move |conv| (block, rdb, conv)));
    (0..blocks).flat_map(of_block)
}
