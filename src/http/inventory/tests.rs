use std::{
    fs,
    path::Path,
    sync::{
        Condvar,
        atomic::{AtomicU32, Ordering},
    },
};

use super::*;
use crate::config::ModeConfigManager;

static LOOKED: AtomicU32 = AtomicU32::new(0);
static MAY_GO_ON: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

/// An inspector on a very slow disk.
fn slow(_: &str, _: &Path) -> Inspected {
    LOOKED.fetch_add(1, Ordering::Relaxed);
    let may_go_on = MAY_GO_ON.0.lock().unwrap();
    let _may_go_on = MAY_GO_ON.1.wait_while(may_go_on, |may_go_on| !*may_go_on).unwrap();
    Inspected { kind: ModelKind::Lora, family: None, precision: None, problem: None }
}

#[tokio::test]
async fn all_who_ask_during_a_walk_share_it_and_what_is_known_is_not_looked_into_again() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::create_dir(root.join("m")).unwrap();
    for file in ["a", "b"] {
        fs::write(root.join(format!("m/{file}.safetensors")), "x").unwrap();
    }
    fs::write(root.join("modes.yaml"), "model_root: m\ndefault_mode: a\nmodes: {a: {model: x}}\n")
        .unwrap();
    let modes = ModeConfigManager::load(root.join("modes.yaml")).unwrap().current();
    let inspections = Inspections::new(slow);
    let mut walks: Vec<Walk> = (0..50).map(|_| inspections.walk(modes.clone())).collect();
    assert!(walks.iter().all(|walk| walk.same_channel(&walks[0])));
    *MAY_GO_ON.0.lock().unwrap() = true;
    MAY_GO_ON.1.notify_all();
    for walk in &mut walks {
        let found = walk.wait_for(Option::is_some).await.unwrap();
        assert_eq!(found.as_ref().unwrap().loras.len(), 2);
    }
    assert_eq!(LOOKED.load(Ordering::Relaxed), 2);

    fs::write(root.join("m/b.safetensors"), "another").unwrap();
    let mut next = inspections.walk(modes.clone());
    assert!(!next.same_channel(&walks[0]), "what has ended is not shared");
    next.wait_for(Option::is_some).await.unwrap();
    assert_eq!(LOOKED.load(Ordering::Relaxed), 3, "one file was replaced");
}
