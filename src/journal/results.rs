//! The images of jobs that have ended: one PNG file each, `<job>-<index>.png`, the parameters
//! embedded as in an answer to /generate.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use crate::{
    image::{
        self, Format, Rgb,
        parameters::{self, Facts, infotext},
    },
    job::{Job, JobId},
    queue::Entry,
    worker::protocol::DrawnImages,
};

/// Where they are.
#[derive(Debug, Clone)]
pub struct Results {
    folder: PathBuf,
}

impl Results {
    pub fn open(folder: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        Ok(Self { folder })
    }

    /// One image's file. Nothing if it was removed.
    pub fn file(&self, id: JobId, index: usize) -> io::Result<Option<File>> {
        match File::open(self.path(id, index)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts a job's images on disk, and says how many bytes they take there. Each is there as a
    /// whole or not at all.
    pub fn save(&self, entry: &Entry, images: &DrawnImages) -> io::Result<u64> {
        let mut bytes = 0;
        for (index, file) in png_files(entry, images).enumerate() {
            let file = file?;
            bytes += file.len() as u64;
            let path = self.path(entry.id, index);
            let unfinished = path.with_extension("tmp");
            let mut out = File::create(&unfinished)?;
            out.write_all(&file)?;
            out.sync_all()?;
            fs::rename(&unfinished, &path)?;
        }
        File::open(&self.folder)?.sync_all()?;
        Ok(bytes)
    }

    /// Removes a job's images; that they are gone already is fine.
    pub fn remove(&self, id: JobId) {
        for index in 0.. {
            let path = self.path(id, index);
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => return,
                Err(error) => {
                    tracing::warn!("'{}' cannot be removed: {error}", path.display());
                    return;
                }
            }
        }
    }

    /// Removes what belongs to none of these jobs: a daemon was ended before it had written down
    /// that it kept or removed them. What is named otherwise is not ours.
    pub fn keep_only(&self, jobs: &HashSet<JobId>) -> io::Result<()> {
        for file in fs::read_dir(&self.folder)? {
            let path = file?.path();
            let is_unknown = job_of(&path).is_some_and(|id| !jobs.contains(&id));
            let is_unfinished = path.extension().is_some_and(|it| it == "tmp");
            if is_unknown || (is_unfinished && job_of(&path).is_some()) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    fn path(&self, id: JobId, index: usize) -> PathBuf {
        self.folder.join(format!("{id}-{index}.png"))
    }
}

/// The job whose image that file is.
fn job_of(path: &Path) -> Option<JobId> {
    let (id, index) = path.file_stem()?.to_str()?.rsplit_once('-')?;
    index.parse::<usize>().ok()?;
    id.parse().ok()
}

fn png_files(entry: &Entry, images: &DrawnImages) -> impl Iterator<Item = io::Result<Vec<u8>>> {
    let report = &images.report;
    images.each().enumerate().map(move |(index, bytes)| {
        let text = match &entry.job {
            Job::Generation { request, pipeline } => {
                let facts = Facts {
                    prompt: &entry.terms.prompt,
                    seed: request.seed.wrapping_add(index as u64),
                    scheduler: report.scheduler,
                    pipeline,
                    skipped_loras: &report.skipped_loras,
                };
                infotext(request, facts)
            }
            Job::Upscale { superres, parameters, .. } => parameters::upscaled(parameters, superres),
            Job::ModeSwitch { .. } | Job::Load { .. } | Job::Unload { .. } | Job::Custom { .. } => {
                String::new()
            }
        };
        let rgb = Rgb { width: report.size.width, height: report.size.height, bytes };
        image::encode(rgb, Format::Png, &text).map_err(io::Error::other)
    })
}
