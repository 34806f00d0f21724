//! `modes.yaml` → a valid, immutable [`Modes`]: the one owner of that file.
//!
//! The way (`source`): bytes → `raw` (a tree with positions) → `variables` (`${VAR}`) → `resolve`
//! (typed, or every error at once) → `files` (warnings for what is not on disk) and `stamp` (which
//! files those are) → the current snapshot, which a reload replaces as a whole or not at all. Three
//! ways lead to a reload: the file is seen to change (`watch`), a signal, the API, which may also
//! `edit` it; what each did is kept in [`ConfigStatus`]. Knows nothing of queue, worker or HTTP: who
//! must act on a change listens.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard},
    time::SystemTime,
};

use crate::modes::{ComputeWish, Modes, ModesDiff};

mod diagnostic;
mod edit;
mod excerpt;
mod files;
mod folder;
mod inventory;
mod loras;
mod names;
mod raw;
mod reader;
mod resolve;
mod schema;
mod source;
mod stamp;
mod status;
mod variables;
mod watch;
mod write;

pub use diagnostic::{ConfigErrors, Diagnostic, KeyPath, Position, Severity};
pub use edit::{EditError, ModeEdit, NotEditable};
pub use excerpt::Excerpt;
pub use inventory::{ModeFiles, ModelFile, files_of, inventory};
pub use loras::{UnknownLora, find_lora};
pub use names::check_file_name;
pub use schema::schema;
pub use source::source_of;
pub use stamp::with_loras;
pub use status::{ConfigStatus, Origin, Rejected, ReloadOutcome, ReloadReport, Revision};
pub use watch::watch;

use resolve::compute::Beside;
use source::{
    FROM_ENVIRONMENT, Meaning, Unreadable, check_length, read_text, revision_of, understand,
};

/// Loads, validates and holds what `modes.yaml` says.
pub struct ModeConfigManager {
    path: PathBuf,
    /// Whether [`FROM_ENVIRONMENT`] stands for a file.
    from_environment: bool,
    beside: Beside,
    state: RwLock<State>,
    /// Reloads one after the other, so that each reports the difference that it made; and what was
    /// on disk at the last one.
    reloading: Mutex<Seen>,
    listener: OnceLock<Listener>,
}

type Listener = Box<dyn Fn(&ModesDiff, &Arc<Modes>) + Send + Sync>;

struct State {
    modes: Arc<Modes>,
    status: Arc<ConfigStatus>,
}

/// What the file was: its revision, or why it could not be read.
type Seen = Result<String, String>;

impl ModeConfigManager {
    /// Reads `path`; its own folder is what `model_root` and `lora_root` are relative to.
    pub fn load(path: impl Into<PathBuf>) -> Result<Self, ConfigErrors> {
        Self::load_with(path, ComputeWish::default())
    }

    /// The same; what `wish` names comes before what the file says of it.
    pub fn load_with(path: impl Into<PathBuf>, wish: ComputeWish) -> Result<Self, ConfigErrors> {
        let path = path.into();
        let text = read_text(&path).map_err(|failure| failure.of(&path))?;
        Self::start(path, text, false, wish)
    }

    /// The same; but where there is no such file, and the environment names a model (`MODEL_ROOT`
    /// and `MODEL`), there is one mode, `default`, which it describes.
    pub fn load_or_from_environment(
        path: impl Into<PathBuf>,
        wish: ComputeWish,
    ) -> Result<Self, ConfigErrors> {
        let path = path.into();
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_missing = std::fs::symlink_metadata(&path)
            .is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        if !is_missing || !is_set("MODEL") || !is_set("MODEL_ROOT") {
            return Self::load_with(path, wish);
        }
        Self::start(path, FROM_ENVIRONMENT.to_owned(), true, wish).map_err(|mut errors| {
            let in_text = errors.diagnostics.iter_mut().filter(|error| error.at.is_some());
            for error in in_text {
                (error.file, error.at) = (Path::new("environment").into(), None);
            }
            errors
        })
    }

    fn start(
        path: PathBuf,
        text: String,
        from_environment: bool,
        wish: ComputeWish,
    ) -> Result<Self, ConfigErrors> {
        let revision = revision_of(&text);
        let (modes, warnings) = understand(&text, &path, Beside { wish, running: None })?;
        let status = ConfigStatus {
            in_force: Revision { id: revision.clone(), at: SystemTime::now(), by: Origin::Start },
            warnings,
            rejected: None,
            reloads: BTreeMap::new(),
        };
        Ok(Self {
            path,
            from_environment,
            beside: Beside { wish, running: Some(modes.compute) },
            state: RwLock::new(State { modes, status: Arc::new(status) }),
            reloading: Mutex::new(Ok(revision)),
            listener: OnceLock::new(),
        })
    }

    /// The modes as of now. Whoever holds the snapshot keeps it through any reload.
    pub fn current(&self) -> Arc<Modes> {
        self.state().modes.clone()
    }

    pub fn status(&self) -> Arc<ConfigStatus> {
        self.state().status.clone()
    }

    /// What the current snapshot's file gave reason to warn of.
    pub fn warnings(&self) -> Arc<[Diagnostic]> {
        self.status().warnings.clone()
    }

    /// Has `listener` told of every change, in order, before who asked for the reload is answered.
    /// There is one listener; a second one is not told.
    pub fn on_change(&self, listener: impl Fn(&ModesDiff, &Arc<Modes>) + Send + Sync + 'static) {
        let _ = self.listener.set(Box::new(listener));
    }

    /// Whether there is a file; else there is one mode, and nothing to reload or to edit.
    pub fn has_file(&self) -> bool {
        !self.from_environment
    }

    /// Reads the file again. On an error the last good snapshot stays. Blocks on the disk.
    pub fn reload(&self, by: Origin) -> Result<ReloadReport, ConfigErrors> {
        let mut seen = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let text = self.read_text();
        *seen = seen_in(&text);
        self.apply(seen.as_ref().ok(), self.meaning(text), by)
    }

    /// The same, if the file is not what it was when it was last read.
    pub fn reload_if_edited(&self, by: Origin) -> Option<Result<ReloadReport, ConfigErrors>> {
        let mut seen = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let text = self.read_text();
        let now = seen_in(&text);
        if *seen == now {
            return None;
        }
        *seen = now;
        Some(self.apply(seen.as_ref().ok(), self.meaning(text), by))
    }

    /// Changes one mode in the file and applies it: both or neither. The file's other lines stay as
    /// they are. `expected`: the revision that the caller has seen.
    pub fn edit(
        &self,
        name: &str,
        change: &ModeEdit,
        expected: impl FnOnce(&str) -> bool,
    ) -> Result<ReloadReport, EditError> {
        let mut seen = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let text = self.read_text().map_err(|failure| EditError::Broken(failure.of(&self.path)))?;
        let revision = revision_of(&text);
        if !expected(&revision) {
            return Err(EditError::OtherRevision { revision });
        }
        names::check_mode_name(name).map_err(EditError::BadName)?;
        let (before, _) = understand(&text, &self.path, self.beside).map_err(EditError::Broken)?;
        match change {
            ModeEdit::Add(_) if before.get(name).is_ok() => {
                return Err(EditError::Exists(name.to_owned()));
            }
            ModeEdit::Remove => {
                before.get(name)?;
            }
            ModeEdit::Add(_) | ModeEdit::Put(_) => {}
        }
        let root = raw::parse(&text).map_err(|_| NotEditable::NotInLines)?;
        let text = edit::edit(&text, &root, name, change)?;
        check_length(text.len()).map_err(|failure| EditError::FileTooLarge(failure.message))?;
        raw::parse(&text).map_err(|error| match error.is_too_much {
            true => EditError::FileTooLarge(format!("exceeds a limit: {}", error.message)),
            // Another mode may have stood on this one, by an alias.
            false => NotEditable::Entangled.into(),
        })?;
        let meaning = understand(&text, &self.path, self.beside).map_err(EditError::Invalid)?;
        let (after, _) = &meaning;
        let diff = before.diff(after);
        let others = [&diff.added, &diff.removed, &diff.to_reload, &diff.redefined];
        let is_there = after.modes.contains_key(name) != (*change == ModeEdit::Remove);
        let only_this = others.into_iter().flatten().all(|other| other == name);
        if !only_this || !is_there || diff.default_mode.is_some() || !diff.settings.is_empty() {
            return Err(NotEditable::Entangled.into());
        }
        write::atomically(&self.path, &text).map_err(EditError::Unwritable)?;
        *seen = Ok(revision_of(&text));
        self.apply(seen.as_ref().ok(), Ok(meaning), Origin::Api).map_err(EditError::Invalid)
    }

    fn read_text(&self) -> Result<String, Unreadable> {
        if self.from_environment {
            return Ok(FROM_ENVIRONMENT.to_owned());
        }
        read_text(&self.path)
    }

    /// The file, as it was named to [`load`](Self::load).
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn meaning(&self, text: Result<String, Unreadable>) -> Result<Meaning, ConfigErrors> {
        let text = text.map_err(|failure| failure.of(&self.path))?;
        understand(&text, &self.path, self.beside)
    }

    /// Called under the lock of `reloading` alone; `id`: the revision of what was understood, if the
    /// file could be read at all.
    fn apply(
        &self,
        id: Option<&String>,
        understood: Result<Meaning, ConfigErrors>,
        by: Origin,
    ) -> Result<ReloadReport, ConfigErrors> {
        let id = id.cloned();
        let (old, mut status) = {
            let state = self.state();
            (state.modes.clone(), ConfigStatus::clone(&state.status))
        };
        let at = SystemTime::now();
        let (modes, result) = match understood {
            Ok((modes, warnings)) => {
                let diff = old.diff(&modes);
                let id = id.unwrap_or_default();
                if diff.is_empty() && id == status.in_force.id {
                    status.count(by, ReloadOutcome::Unchanged);
                } else {
                    status.count(by, ReloadOutcome::Applied);
                    status.in_force = Revision { id: id.clone(), at, by };
                }
                status.warnings = warnings.clone();
                // The very same snapshot where nothing changed: who compares, compares pointers.
                let modes = if diff.is_empty() { old } else { modes };
                (modes, Ok(ReloadReport { revision: id, diff, warnings }))
            }
            Err(errors) => {
                status.count(by, ReloadOutcome::Rejected);
                status.rejected = Some(Rejected { id, at, by, errors: errors.clone() });
                (old, Err(errors))
            }
        };
        let status = Arc::new(status);
        *self.state.write().unwrap_or_else(PoisonError::into_inner) =
            State { modes: modes.clone(), status };
        log(&result, by);
        if let (Ok(report), Some(listener)) = (&result, self.listener.get())
            && !report.diff.is_empty()
        {
            listener(&report.diff, &modes);
        }
        result
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn log(result: &Result<ReloadReport, ConfigErrors>, by: Origin) {
    let by = by.name();
    match result {
        Ok(ReloadReport { revision, diff, warnings }) => {
            warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            tracing::info!(by, revision, "configuration reloaded: {diff}");
        }
        Err(errors) => {
            errors.diagnostics.iter().for_each(|error| tracing::error!("{error}"));
            tracing::error!(by, "configuration not reloaded; the modes are what they were before");
        }
    }
}

fn seen_in(text: &Result<String, Unreadable>) -> Seen {
    match text {
        Ok(text) => Ok(revision_of(text)),
        Err(failure) => Err(failure.message.clone()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
