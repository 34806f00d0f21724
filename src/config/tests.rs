//! The manager against files on disk.

use std::{fs, os::unix::fs::symlink};

use super::*;
use crate::modes::{Http, Jobs, Memory, ModesDiff, Order, Time};

/// Modes from the YAML of their mapping.
pub fn modes(mapping: &str, default_mode: &str) -> Modes {
    let text = format!("model_root: models\ndefault_mode: {default_mode}\nmodes: {mapping}\n");
    let root = raw::parse(&text).unwrap();
    resolve::resolve(&root, Path::new("modes.yaml").into(), Path::new("/home/x")).unwrap().modes
}

fn load_bytes(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("modes.yaml");
    fs::write(&path, bytes).unwrap();
    match ModeConfigManager::load(&path) {
        Ok(_) => "no error".into(),
        Err(errors) => errors.to_string().replace(path.to_str().unwrap(), "modes.yaml"),
    }
}

#[test]
fn the_example_is_valid() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manager = ModeConfigManager::load(root.join("modes.yaml.example")).unwrap();
    let warnings: Vec<_> = manager.warnings().iter().map(Diagnostic::to_string).collect();
    assert_eq!(warnings, [""; 0]);
    let modes = manager.current();
    assert_eq!(modes.default_mode, "demo");
    assert!(modes.modes["demo"].pipeline.checkpoint.path.starts_with(root.join("models")));
    assert_eq!(modes.memory, Memory::default());
    assert!(modes.modes.values().all(|mode| !mode.pinned && !mode.preload));
}

#[test]
fn the_example_is_valid_with_its_comments_taken_away() {
    let text = include_str!("../../modes.yaml.example");
    let shown: String =
        text.lines().map(|line| format!("{}\n", line.replacen("#: ", "", 1))).collect();
    assert_ne!(shown, text);
    let root = raw::parse(&shown).unwrap();
    let file = Path::new("modes.yaml").into();
    let resolved = resolve::resolve(&root, file, Path::new("/home/x")).unwrap();
    assert!(resolved.modes.modes.values().any(|mode| mode.pipeline.loras.len() == 2));
}

#[test]
fn a_file_that_is_none_says_so() {
    insta::assert_snapshot!(load_bytes(b""), @"modes.yaml:1:1: error: the file is empty; modes.yaml.example shows what it needs");
    insta::assert_snapshot!(load_bytes(b"# only\n"), @"modes.yaml:2:1: error: the file is empty; modes.yaml.example shows what it needs");
    insta::assert_snapshot!(load_bytes(b"a: 1\nb: \xff\n"), @"modes.yaml:2:4: error: is not UTF-8 text");
    insta::assert_snapshot!(load_bytes(b"- a\n- b\n"), @"modes.yaml:1:1: error: expected a mapping (key: value), found a list");
    insta::assert_snapshot!(load_bytes(b"modes: {a: {}}\nmodes: {}\n"), @"modes.yaml:2:1: error: the key 'modes' is here a second time");
    insta::assert_snapshot!(load_bytes(b"modes: [a\n"), @"modes.yaml:1:8: error: unclosed bracket '['");
    insta::assert_snapshot!(load_bytes(&vec![b'#'; 9 << 20]), @"modes.yaml: error: is larger than the limit of 8 MiB");
}

#[test]
fn a_file_that_is_not_there_or_not_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let missing = ModeConfigManager::load(folder.path().join("none.yaml")).err().unwrap();
    assert!(missing.to_string().contains("cp modes.yaml.example "), "{missing}");
    let directory = ModeConfigManager::load(folder.path()).err().unwrap();
    assert!(directory.to_string().contains("is a folder"), "{directory}");
}

#[test]
fn a_reload_replaces_the_whole_snapshot_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("modes.yaml");
    let write = |modes: &str| {
        fs::write(&path, format!("model_root: .\ndefault_mode: a\nmodes: {modes}\n")).unwrap();
    };
    write("{a: {model: a}}");
    let manager = ModeConfigManager::load(&path).unwrap();
    let before = manager.current();

    write("{a: {model: a}, b: {model: b, steps: 1}}");
    assert_eq!(manager.reload(Origin::Api).unwrap_err().diagnostics.len(), 1);
    assert!(Arc::ptr_eq(&before, &manager.current()));

    write("{a: {model: a}, b: {model: b}}");
    let report = manager.reload(Origin::Api).unwrap();
    assert_eq!(report.diff, ModesDiff { added: vec!["b".into()], ..ModesDiff::default() });
    assert_eq!(manager.current().modes.len(), 2);
    assert_eq!(before.modes.len(), 1);

    fs::remove_file(&path).unwrap();
    manager.reload(Origin::Api).unwrap_err();
    assert_eq!(manager.current().modes.len(), 2);
}

#[test]
fn what_computes_is_changed_by_the_next_start_and_a_reload_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("modes.yaml");
    let write = |line: &str| {
        let text = format!("model_root: .\ndefault_mode: a\nmodes: {{a: {{model: a}}}}\n{line}\n");
        fs::write(&path, text).unwrap();
    };
    let about_device = |warnings: &[Diagnostic]| {
        let about = warnings.iter().filter(|it| it.key.to_pointer() == "/device");
        about.map(|it| (it.at.unwrap().line, it.message.clone())).collect::<Vec<_>>()
    };
    write("device: auto");
    let manager = ModeConfigManager::load(&path).unwrap();
    write("device: cpu");
    for _ in 0..2 {
        manager.reload(Origin::Api).unwrap();
        let later = "'cpu' counts from the daemon's next start on; until then it is 'auto'";
        assert_eq!(about_device(&manager.warnings()), [(4, later.to_owned())]);
    }
    let before = manager.current();
    write("device: auto");
    let report = manager.reload(Origin::Api).unwrap();
    assert_eq!((report.diff.settings, about_device(&report.warnings)), (vec!["device"], vec![]));
    assert_ne!(before.compute, manager.current().compute);
}

#[test]
fn a_diff_names_what_came_went_and_changed() {
    let old = modes("{a: {model: a}, b: {model: b}, c: {model: c}}", "a");
    let text = "{b: {model: bb, clip_skip: 1}, c: {model: c, default_steps: 9}, d: {model: d}}";
    let memory = Memory { verify: true, ..Memory::default() };
    let order = Order { max_wait: Time::of_secs(1), ..Order::default() };
    let jobs = Jobs { max_attempts: 3, ..Jobs::default() };
    let superres = old.modes.get("a").map(|mode| mode.pipeline.checkpoint.clone());
    let http = Http { max_connections: 9, ..Http::default() };
    let new =
        Modes { max_pixels: 1 << 20, memory, order, jobs, superres, http, ..modes(text, "b") };
    let expected = ModesDiff {
        added: vec!["d".into()],
        removed: vec!["a".into()],
        to_reload: vec!["b".into()],
        redefined: vec!["c".into()],
        default_mode: Some("b".into()),
        settings: vec!["max_pixels", "memory", "max_wait", "jobs", "http", "superres"],
    };
    assert_eq!(old.diff(&new), expected);
    assert_eq!(expected.changed(), ["b", "c"]);
    let told = "added d; removed a; to be loaded again b; redefined c; default mode b; settings max_pixels, memory, max_wait, jobs, http, superres";
    assert_eq!(expected.to_string(), told);
    assert!(old.diff(&old).is_empty());
}

#[test]
fn every_part_of_a_mode_counts() {
    let old = modes("{a: {model: a}}", "a");
    for changed in [
        "{a: {model: b}}",
        "{a: {model: a, loras: [x]}}",
        "{a: {model: a, vae: x}}",
        "{a: {model: a, prediction: v}}",
        "{a: {model: a, on_lora_error: skip}}",
    ] {
        assert_eq!(old.diff(&modes(changed, "a")).to_reload, ["a"], "{changed}");
    }
    for changed in [
        "{a: {model: a, long_prompts: chunk}}",
        "{a: {model: a, default_negative_prompt: x}}",
        "{a: {model: a, pinned: true}}",
        "{a: {model: a, preload: true}}",
        "{a: {model: a, metadata: {k: 1}}}",
    ] {
        assert_eq!(old.diff(&modes(changed, "a")).redefined, ["a"], "{changed}");
    }
}

#[test]
fn missing_files_are_warnings_with_the_nearest_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("modes.yaml");
    fs::create_dir_all(folder.path().join("models/sd15")).unwrap();
    fs::write(folder.path().join("models/sd15/dreamlike.safetensors"), "x").unwrap();
    fs::write(folder.path().join("models/sd15/other.safetensors"), "x").unwrap();
    for (folder_name, file) in [("sdxl", "model_index.json"), ("fine-vae", "config.json")] {
        fs::create_dir(folder.path().join("models").join(folder_name)).unwrap();
        fs::write(folder.path().join("models").join(folder_name).join(file), "{}").unwrap();
    }
    symlink("nowhere", folder.path().join("models/link.safetensors")).unwrap();
    let text = "model_root: models\nlora_root: nowhere\ndefault_mode: a\nmodes:\n  \
                a: {model: sd15/dreamlik.safetensors, loras: [x.safetensors]}\n  \
                b: {model: sd15}\n  c: {model: sd15/dreamlike.safetensors}\n  \
                d: {model: link.safetensors}\n  e: {model: sd15/quite.safetensors}\n  \
                f: {model: sdxl, vae: fine-vae}\n  g: {model: fine-vae, vae: sdxl}\nsuperres: sd15/othr.safetensors\n";
    fs::write(&path, text).unwrap();
    let manager = ModeConfigManager::load(&path).unwrap();
    let folder = folder.path().to_str().unwrap();
    let lines: Vec<_> =
        manager.warnings().iter().map(|w| w.to_string().replace(folder, "~")).collect();
    insta::assert_snapshot!(lines.join("\n"), @r"
    ~/modes.yaml:2:12: warning: lora_root: there is no such folder (looked for ~/nowhere)
    ~/modes.yaml:5:14: warning: modes.a.model: there is no file 'sd15/dreamlik.safetensors'; did you mean 'sd15/dreamlike.safetensors'? (looked for ~/models/sd15/dreamlik.safetensors)
    ~/modes.yaml:6:14: warning: modes.b.model: 'sd15' is a folder without model_index.json; a .safetensors file or a folder as diffusers writes it is expected (looked for ~/models/sd15)
    ~/modes.yaml:8:14: warning: modes.d.model: 'link.safetensors' is a symbolic link that leads nowhere (looked for ~/models/link.safetensors)
    ~/modes.yaml:9:14: warning: modes.e.model: there is no file 'sd15/quite.safetensors' (looked for ~/models/sd15/quite.safetensors)
    ~/modes.yaml:11:14: warning: modes.g.model: 'fine-vae' is a folder without model_index.json; a .safetensors file or a folder as diffusers writes it is expected (looked for ~/models/fine-vae)
    ~/modes.yaml:11:29: warning: modes.g.vae: 'sdxl' is a folder without config.json; a .safetensors file or a folder as diffusers writes it is expected (looked for ~/models/sdxl)
    ~/modes.yaml:12:11: warning: superres: there is no file 'sd15/othr.safetensors'; did you mean 'sd15/other.safetensors'? (looked for ~/models/sd15/othr.safetensors)
    ");
}
