//! `benches/gpu`, which measures on a card: that it is whole, and that its dry run works on this binary. What needs torch is
//! left out; the rest is Python's standard library.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/gpu")
}

/// Python 3, where there is one; it leaves nothing beside the scripts.
fn python() -> Option<Command> {
    let there = Command::new("python3").arg("--version").output();
    if !there.is_ok_and(|it| it.status.success()) {
        eprintln!("left out: there is no python3");
        return None;
    }
    let mut python = Command::new("python3");
    python.env("PYTHONDONTWRITEBYTECODE", "1").current_dir(scripts());
    Some(python)
}

#[track_caller]
fn succeeded(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{said}\n{errors}", output.status);
    said
}

fn modules() -> Vec<String> {
    let files = fs::read_dir(scripts()).unwrap().map(|entry| entry.unwrap().file_name());
    let names = files.map(|name| name.to_string_lossy().into_owned());
    names.filter(|name| name.ends_with(".py")).collect()
}

#[test]
fn every_module_compiles() {
    let modules = modules();
    assert!(modules.len() > 5, "{modules:?}");
    for module in modules {
        let Some(mut python) = python() else { return };
        let compiling = "import sys; compile(open(sys.argv[1]).read(), sys.argv[1], 'exec')";
        succeeded(&python.args(["-c", compiling, &module]).output().unwrap());
    }
}

#[test]
fn examples_hold() {
    for module in ["card.py", "daemon.py", "images.py", "loads.py", "options.py", "table.py"] {
        let Some(mut python) = python() else { return };
        let said = succeeded(&python.args(["-m", "doctest", "-v", module]).output().unwrap());
        assert!(!said.contains("\n0 passed"), "{module} has no example:\n{said}");
    }
}

#[test]
fn the_dry_run_measures_this_binary() {
    let Some(mut python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (json, images) = (folder.path().join("results.json"), folder.path().join("images"));
    let output = python
        .args(["run.py", "--tiny", "--ours-only", "--device", "cpu", "--rounds", "1"])
        .args(["--switches", "2", "--jobs", "3", "--binary", env!("CARGO_BIN_EXE_diffused")])
        .args([Path::new("--json"), &json, Path::new("--images"), &images])
        .output()
        .unwrap();
    let said = succeeded(&output);
    let results: Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();

    let rows = |table: &str| results[table].as_array().unwrap_or_else(|| panic!("{table}: {said}"));
    let positive = |row: &Value, key: &str| {
        assert!(row[key].as_f64().is_some_and(|number| number > 0.0), "{key} of {row}");
    };
    assert_eq!(rows("images").len(), 4, "{said}"); // two families, two cases each
    for row in rows("images") {
        for key in ["step_ms", "image_s", "decode_ms", "allocated_gib", "process_gib"] {
            positive(row, key);
        }
        assert!(said.contains(row["case"].as_str().unwrap()), "{said}");
    }
    assert_eq!(fs::read_dir(images).unwrap().count(), 4);
    assert!(rows("loads").len() >= 10, "{said}");
    rows("loads").iter().for_each(|row| positive(row, "ms"));
    let allocated = rows("floor").iter().find(|row| row["what"] == "allocated_gb").unwrap();
    assert_eq!((&allocated["before"], &allocated["after"]), (&0.0.into(), &0.0.into()), "{said}");
    assert_eq!(rows("queue")[0]["jobs"], 3);
    positive(&rows("queue")[0], "busy_ms");
    assert_eq!(results["notes"], Value::Array(Vec::new()), "{said}");
}

#[test]
fn what_cannot_be_measured_is_said() {
    let Some(mut python) = python() else { return };
    let wish = ["--engine", "steam", "--tiny", "--ours-only", "--device", "cpu"];
    let binary = ["--binary", env!("CARGO_BIN_EXE_diffused")];
    let output = python.arg("run.py").args(wish).args(binary).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("start failed: ") && said.contains("steam"), "{said}");
}
