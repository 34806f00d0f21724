//! From canonical names to a file's own: a list of modules, each with what the file calls it.

use super::file::Header;

/// How a module's own parts are called.
pub(super) type Parts = &'static [Part];

pub(super) struct Part {
    canonical: &'static str,
    file: &'static str,
    view: View,
}

/// Which part of a stored tensor is meant, and how it lies there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    Whole,
    /// The one of three equal parts of the first dimension.
    Third(usize),
    /// The rows are stored as columns.
    Transposed,
}

pub(super) const SAME: Parts = &[];

pub(super) const fn part(canonical: &'static str, file: &'static str) -> Part {
    Part { canonical, file, view: View::Whole }
}

pub(super) const fn view(canonical: &'static str, file: &'static str, view: View) -> Part {
    Part { canonical, file, view }
}

/// A module under both of its names; either may be empty, which stands for the component itself.
#[derive(Clone)]
pub(super) struct ModuleNames {
    pub canonical: String,
    pub file: String,
    pub parts: Parts,
}

/// What one file calls the modules of one component.
#[derive(Clone, Default)]
pub struct Names {
    modules: Vec<ModuleNames>,
}

impl Names {
    /// Of a file that has its tensors under canonical names.
    pub fn canonical() -> Self {
        let mut names = Self::default();
        names.add("", "", SAME);
        names
    }

    pub(super) fn add(
        &mut self,
        canonical: impl Into<String>,
        file: impl Into<String>,
        parts: Parts,
    ) {
        let (canonical, file) = (canonical.into(), file.into());
        self.modules.push(ModuleNames { canonical, file, parts });
    }

    /// The same names below another module of the file.
    pub(super) fn below(mut self, prefix: &str) -> Self {
        for module in &mut self.modules {
            module.file = join(prefix, &module.file);
        }
        self
    }

    /// What the file calls the tensor or module of that canonical name.
    pub fn file_name(&self, canonical: &str) -> (String, View) {
        for module in &self.modules {
            let Some(rest) = below(canonical, &module.canonical) else { continue };
            let part =
                module.parts.iter().find_map(|part| Some((part, below(rest, part.canonical)?)));
            return match part {
                Some((part, rest)) => (join(&join(&module.file, part.file), rest), part.view),
                None => (join(&module.file, rest), View::Whole),
            };
        }
        (canonical.to_owned(), View::Whole)
    }

    /// Whether the module of that name, or any inside it, is one of these.
    pub fn has_module(&self, canonical: &str) -> bool {
        self.modules.iter().any(|module| {
            !module.canonical.is_empty() && below(&module.canonical, canonical).is_some()
        })
    }

    /// The canonical names of the file's tensors, each with its name in the file.
    pub fn tensors<'a>(&'a self, file: &'a Header) -> impl Iterator<Item = (String, &'a str)> {
        file.entries.keys().flat_map(move |name| {
            self.modules
                .iter()
                .filter_map(move |module| Some((module, below(name, &module.file)?)))
                .flat_map(move |(module, rest)| {
                    let parts = module.parts.iter().filter_map(|part| {
                        Some(join(
                            &join(&module.canonical, part.canonical),
                            below(rest, part.file)?,
                        ))
                    });
                    let parts: Vec<String> = parts.collect();
                    let whole = parts.is_empty().then(|| join(&module.canonical, rest));
                    parts.into_iter().chain(whole).map(move |canonical| (canonical, name.as_str()))
                })
        })
    }
}

/// What follows `module` in `name`, without the dot; nothing if it is the module itself.
pub(super) fn below<'a>(name: &'a str, module: &str) -> Option<&'a str> {
    if module.is_empty() {
        return Some(name);
    }
    match name.strip_prefix(module)? {
        "" => Some(""),
        rest => rest.strip_prefix('.'),
    }
}

/// Two parts of a name, of which either may be empty.
pub(super) fn join(module: &str, rest: &str) -> String {
    match (module, rest) {
        ("", name) | (name, "") => name.to_owned(),
        _ => format!("{module}.{rest}"),
    }
}
