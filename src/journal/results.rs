//! The images of jobs that have ended: one PNG file each, `<job>-<index>.png`, the parameters
//! embedded as in an answer to /generate. Owns the folders of those files: `results`, and
//! `orphaned` for images whose job the journal does not know. Must not know the journal.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::private;
use crate::{
    image::{
        self, Format, Rgb,
        parameters::{self, Facts, infotext},
    },
    job::{Job, JobId},
    queue::Entry,
    request::Overrides,
    worker::protocol::DrawnImages,
};

/// Where they are.
#[derive(Debug, Clone)]
pub struct Results {
    folder: PathBuf,
    orphaned: PathBuf,
}

/// An image's file, and its place among its job's images.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageFile {
    pub job: JobId,
    pub index: usize,
    pub path: PathBuf,
}

impl Results {
    pub fn open(state: &Path) -> io::Result<Self> {
        let folder = state.join("results");
        private::create_folder(&folder)?;
        Ok(Self { folder, orphaned: state.join("orphaned") })
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
            let mut out = private::create_file(&unfinished)?;
            out.write_all(&file)?;
            out.sync_all()?;
            fs::rename(&unfinished, &path)?;
        }
        self.sync()?;
        Ok(bytes)
    }

    /// Removes a job's images; that they are gone already is fine. Says whether all are gone.
    pub fn remove(&self, id: JobId) -> bool {
        let mut all_gone = true;
        // Some may be missing: somebody has removed them, or they could not be recovered.
        for index in 0..Overrides::MAX_IMAGES as usize {
            let path = self.path(id, index);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!("'{}' cannot be removed: {error}", path.display());
                    all_gone = false;
                }
                Ok(()) | Err(_) => {}
            }
        }
        all_gone
    }

    /// Removes the files that a kill has left unfinished.
    pub fn remove_unfinished(&self) -> io::Result<()> {
        for file in fs::read_dir(&self.folder)? {
            let path = file?.path();
            let is_unfinished = path.extension().is_some_and(|it| it == "tmp");
            if is_unfinished && image_of(&path).is_some() {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Moves the images of all other jobs to `orphaned`, and says which. What is named otherwise is
    /// not ours, and stays. So does an image that is in `orphaned` already, byte for byte: a daemon
    /// that is killed again and again makes one copy.
    pub fn set_aside_all_but(&self, known: &HashSet<JobId>) -> io::Result<Vec<ImageFile>> {
        let mut moved = Vec::new();
        for image in self.images()? {
            if known.contains(&image.job) {
                continue;
            }
            private::create_folder(&self.orphaned)?;
            if let Some(path) = self.unused_name(&image)? {
                fs::rename(&image.path, path)?;
                moved.push(image);
            }
        }
        if !moved.is_empty() {
            [&self.orphaned, &self.folder].into_iter().try_for_each(|folder| sync(folder))?;
        }
        Ok(moved)
    }

    /// Removes an image that was set aside, if its place has the same one.
    pub fn remove_copy(&self, image: &ImageFile) -> io::Result<bool> {
        let path = self.path(image.job, image.index);
        let is_copy = path != image.path && path.try_exists()? && are_equal(&path, &image.path)?;
        if is_copy {
            fs::remove_file(&image.path)?;
        }
        Ok(is_copy)
    }

    /// Moves an image back among the results. False if another one has its place.
    pub fn put_back(&self, image: &ImageFile) -> io::Result<bool> {
        let path = self.path(image.job, image.index);
        if path == image.path {
            return Ok(true);
        }
        if path.try_exists()? {
            return Ok(false);
        }
        fs::rename(&image.path, path)?;
        Ok(true)
    }

    /// What a job's images take on disk.
    pub fn bytes(&self, id: JobId) -> u64 {
        let paths = (0..Overrides::MAX_IMAGES as usize).map(|index| self.path(id, index));
        paths.filter_map(|path| Some(fs::metadata(path).ok()?.len())).sum()
    }

    /// Makes what was moved survive a power cut.
    pub fn sync(&self) -> io::Result<()> {
        sync(&self.folder)
    }

    /// All images in `results`, by job and index.
    pub fn images(&self) -> io::Result<Vec<ImageFile>> {
        images_in(&self.folder)
    }

    /// The images that were set aside, by job and index.
    pub fn orphaned(&self) -> io::Result<Vec<ImageFile>> {
        match images_in(&self.orphaned) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            images => images,
        }
    }

    /// The folder of the images that were set aside.
    pub fn orphaned_folder(&self) -> &Path {
        &self.orphaned
    }

    /// Where an image can be set aside without overwriting another one; `None` if it is there.
    fn unused_name(&self, image: &ImageFile) -> io::Result<Option<PathBuf>> {
        let stem = format!("{}-{}", image.job, image.index);
        let mut path = self.orphaned.join(format!("{stem}.png"));
        let mut copy = 2;
        while path.try_exists()? {
            if are_equal(&path, &image.path)? {
                return Ok(None);
            }
            path = self.orphaned.join(format!("{stem}.{copy}.png"));
            copy += 1;
        }
        Ok(Some(path))
    }

    fn path(&self, id: JobId, index: usize) -> PathBuf {
        self.folder.join(format!("{id}-{index}.png"))
    }
}

/// Whether two files have the same bytes.
fn are_equal(one: &Path, other: &Path) -> io::Result<bool> {
    let is_as_long = fs::metadata(one)?.len() == fs::metadata(other)?.len();
    Ok(is_as_long && fs::read(one)? == fs::read(other)?)
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn images_in(folder: &Path) -> io::Result<Vec<ImageFile>> {
    let mut images = Vec::new();
    for file in fs::read_dir(folder)? {
        let file = file?;
        let path = file.path();
        let is_png = path.extension().is_some_and(|it| it == "png") && file.file_type()?.is_file();
        if let Some((job, index)) = image_of(&path).filter(|_| is_png) {
            images.push(ImageFile { job, index, path });
        }
    }
    images.sort_unstable();
    Ok(images)
}

/// The job whose image that file is, and which one.
fn image_of(path: &Path) -> Option<(JobId, usize)> {
    let (id, index) = path.file_stem()?.to_str()?.rsplit_once('-')?;
    Some((id.parse().ok()?, index.parse().ok()?))
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
