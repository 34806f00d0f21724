//! Real files, edited in all the ways that there are.

use std::os::unix::fs::symlink;

use super::*;
use crate::config::ReloadOutcome;

const PATIENCE: Duration = Duration::from_secs(20);

struct Watched {
    folder: tempfile::TempDir,
    config: Arc<ModeConfigManager>,
}

fn text(watch: &str, steps: u32) -> String {
    format!(
        "model_root: .\nwatch: {watch}\ndefault_mode: a\n\
         modes: {{a: {{model: x, default_steps: {steps}}}}}\n"
    )
}

impl Watched {
    /// A folder that `set_up` fills, so that modes.yaml is in it.
    fn start(set_up: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        set_up(folder.path());
        let config = ModeConfigManager::load(folder.path().join("modes.yaml")).unwrap();
        let config = Arc::new(config);
        watch(config.clone()).unwrap();
        Self { folder, config }
    }

    fn with(watch: &str) -> Self {
        Self::start(|folder| fs::write(folder.join("modes.yaml"), text(watch, 1)).unwrap())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    #[track_caller]
    fn until(&self, what: &str, is: impl Fn() -> bool) {
        let began = Instant::now();
        while !is() {
            assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[track_caller]
    fn until_steps(&self, steps: u32) {
        self.until("the edit", || self.config.current().modes["a"].defaults.steps == steps);
    }

    fn count(&self, outcome: ReloadOutcome) -> u64 {
        *self.config.status().reloads.get(&(Origin::File, outcome)).unwrap_or(&0)
    }
}

#[test]
fn an_edit_is_noticed_however_it_is_made_and_read_once() {
    for watch in ["auto", "native", "poll"] {
        let watched = Watched::with(watch);
        let file = watched.file("modes.yaml");
        fs::write(&file, text(watch, 2)).unwrap();
        watched.until_steps(2);
        // As editors do.
        fs::write(watched.file("new"), text(watch, 3)).unwrap();
        fs::rename(watched.file("new"), &file).unwrap();
        watched.until_steps(3);
        fs::remove_file(&file).unwrap();
        watched.until("the loss", || watched.count(ReloadOutcome::Rejected) == 1);
        fs::write(&file, text(watch, 4)).unwrap();
        watched.until_steps(4);
        // The same bytes, and another file beside it, are no edit.
        fs::write(&file, text(watch, 4)).unwrap();
        fs::write(watched.file("other"), "x").unwrap();
        fs::write(&file, text(watch, 5)).unwrap();
        watched.until_steps(5);
        assert_eq!(watched.count(ReloadOutcome::Applied), 4, "{watch}");
        assert_eq!(watched.count(ReloadOutcome::Unchanged), 0, "{watch}");
    }
}

#[test]
fn symbolic_links_are_followed_and_may_be_swapped() {
    // As Kubernetes mounts a ConfigMap: modes.yaml -> ..data/modes.yaml, ..data -> a folder.
    let version = |folder: &Path, name: &str, steps: u32| {
        fs::create_dir(folder.join(name)).unwrap();
        fs::write(folder.join(name).join("modes.yaml"), text("native", steps)).unwrap();
    };
    let watched = Watched::start(|folder| {
        version(folder, "..1", 1);
        symlink("..1", folder.join("..data")).unwrap();
        symlink("..data/modes.yaml", folder.join("modes.yaml")).unwrap();
    });
    version(watched.folder.path(), "..2", 2);
    symlink("..2", watched.file("..data_new")).unwrap();
    fs::rename(watched.file("..data_new"), watched.file("..data")).unwrap();
    watched.until_steps(2);
    fs::write(watched.file("..2/modes.yaml"), text("native", 3)).unwrap();
    watched.until_steps(3);
}

#[test]
fn its_own_key_turns_it_off_and_on() {
    let watched = Watched::with("auto");
    let file = watched.file("modes.yaml");
    fs::write(&file, text("off", 2)).unwrap();
    watched.until_steps(2);
    fs::write(&file, text("auto", 3)).unwrap();
    // Nobody looks; and who asks for it gets it.
    watched.config.reload(Origin::Signal).unwrap();
    watched.until_steps(3);
    fs::write(&file, text("auto", 4)).unwrap();
    watched.until_steps(4);
    assert_eq!(watched.count(ReloadOutcome::Applied), 2);
}
