//! The admin key: from a file or the environment, never from the command line, which everybody can
//! read.

use std::{env::VarError, fs, io, path::Path};

const VARIABLE: &str = "DIFFUSED_ADMIN_KEY";

#[derive(Debug, thiserror::Error)]
#[error("the admin key in {place} {problem}")]
pub struct KeyError {
    place: String,
    problem: String,
}

/// The key, if there is one.
pub fn admin_key(file: Option<&Path>) -> Result<Option<String>, KeyError> {
    let (place, key) = match (file, std::env::var(VARIABLE)) {
        (Some(file), _) => (file.display().to_string(), fs::read_to_string(file)),
        (None, Ok(key)) => (VARIABLE.to_owned(), Ok(key)),
        (None, Err(VarError::NotPresent)) => return Ok(None),
        (None, Err(error)) => (VARIABLE.to_owned(), Err(io::Error::other(error))),
    };
    let key =
        key.map_err(|error| format!("cannot be read: {error}")).and_then(|key| match key.trim() {
            "" => Err("is empty".to_owned()),
            key => Ok(key.to_owned()),
        });
    key.map(Some).map_err(|problem| KeyError { place, problem })
}
