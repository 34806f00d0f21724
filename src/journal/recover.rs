//! A lost index is made again: each image without a job in the journal becomes a job that is done,
//! by what its file says of itself.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    error::Error,
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
};

use super::{
    Ending, JournalError, Record, Remembered,
    damage::{now_ms, with_ending},
    opening::{self, Files},
    results::ImageFile,
};
use crate::{
    image::parameters::{self, Generated, Origin},
    job::{Job, JobId, JobState, Terms},
    modes::Dimensions,
    queue::Entry,
    request::{EncodedImage, GenerateRequest, Overrides, Superres},
    worker::protocol::{DrawnReport, SuperresReport},
};

/// How many records are written together at least.
const BATCH: usize = 1000;

/// What was recovered, and what could not be.
#[derive(Debug, Default)]
pub struct Recovery {
    pub jobs: usize,
    pub images: usize,
    /// Files that stay where they are, and why.
    pub left: Vec<(PathBuf, String)>,
    /// A copy of the journal with the rows that could not be read, where there were any.
    pub copy: Option<PathBuf>,
    /// How many jobs of the journal have ended now, and the bytes of their images.
    pub ended: (usize, u64),
}

/// Makes jobs of the images in a state folder whose job the journal does not know. They count as
/// finished at `now_unix_ms`, so that their age does not expire them at once.
///
/// # Errors
/// The journal cannot be used, or an image cannot be moved. What was recovered until then stays so.
pub fn recover(folder: &Path, now_unix_ms: u64) -> Result<Recovery, JournalError> {
    let files = opening::open(folder)?;
    recover_in(files, folder, now_unix_ms)
        .map_err(|error| JournalError::Unusable { path: folder.into(), error })
}

pub(super) fn recover_in(
    files: Files,
    folder: &Path,
    now_unix_ms: u64,
) -> Result<Recovery, Box<dyn Error + Send + Sync>> {
    let Files { mut store, results, contents } = files;
    let unreadable: HashSet<_> = contents.unreadable.into_iter().collect();
    let mut known: HashMap<_, _> =
        contents.remembered.into_iter().map(|job| (job.entry.id, job)).collect();
    let tombstones: HashSet<_> = contents.tombstones.into_iter().collect();
    // Those of a job that cannot be read are in their place, and those that could not be moved.
    let mut images = results.images()?;
    images.retain(|image| !known.contains_key(&image.job) && !tombstones.contains(&image.job));
    for image in results.orphaned()? {
        let stays_in_place = !tombstones.contains(&image.job)
            && known.get(&image.job).is_none_or(|job| job.ending.is_some());
        // A job that was done again, with its seed, has the same image in its place.
        if !(stays_in_place && results.remove_copy(&image)?) {
            images.push(image);
        }
    }
    let mut by_job: BTreeMap<JobId, Vec<ImageFile>> = BTreeMap::new();
    images.into_iter().for_each(|image| by_job.entry(image.job).or_default().push(image));

    let mut recovery = Recovery::default();
    let mut records = Vec::new();
    for (id, images) in by_job {
        let is_known = known.contains_key(&id);
        let (entry, mut ending) = match job_of(&images, known.get(&id), now_unix_ms) {
            Ok(job) => job,
            Err(reason) => {
                let left = images.into_iter().map(|image| (image.path, reason.clone()));
                recovery.left.extend(left);
                continue;
            }
        };
        for image in images {
            match results.put_back(&image)? {
                true => recovery.images += 1,
                false => {
                    recovery.left.push((image.path, "another image has its place".to_owned()));
                }
            }
        }
        ending.image_bytes = results.bytes(id);
        recovery.jobs += 1;
        match known.get_mut(&id) {
            Some(job) => job.ending = Some(ending.clone()),
            None => {
                recovery.ended.0 += 1;
                recovery.ended.1 += ending.image_bytes;
            }
        }
        if unreadable.contains(&id) {
            if recovery.copy.is_none() {
                let journal = folder.join("journal.sqlite3");
                let copy = with_ending(&journal, &format!(".before-recover-{}", now_ms()));
                store.copy_to(&copy)?;
                recovery.copy = Some(copy);
            }
            store.delete_row(id)?;
        }
        let entry = Box::new(entry);
        if !is_known {
            records.push(Record::Accepted(entry.clone()));
        }
        records.push(Record::Ended { entry, ending: Box::new(ending), images: None });
        if records.len() >= BATCH {
            results.sync()?;
            store.write(&records)?;
            records.clear();
        }
    }
    results.sync()?;
    store.write(&records)?;
    for ending in known.into_values().filter_map(|job| job.ending) {
        recovery.ended.0 += 1;
        recovery.ended.1 += ending.image_bytes;
    }
    Ok(recovery)
}

/// The job whose images these are; or why there can be none.
fn job_of(
    images: &[ImageFile],
    known: Option<&Remembered>,
    now_unix_ms: u64,
) -> Result<(Entry, Ending), String> {
    let count = images.iter().map(|image| image.index + 1).max().unwrap_or_default() as u32;
    match known {
        Some(Remembered { entry, ending: Some(ending), .. })
            if ending.report.as_ref().is_some_and(|report| count <= report.images) =>
        {
            Ok((entry.clone(), ending.clone()))
        }
        Some(Remembered { ending, .. }) => {
            let state = ending.as_ref().map_or("queued", |ending| ending.state.name());
            Err(format!("its job is in the journal, {state} and without such an image"))
        }
        None if count > Overrides::MAX_IMAGES => Err("no job has so many images".to_owned()),
        None => {
            let first = images.first().ok_or("there is no image")?;
            let file = File::open(&first.path).map_err(|error| error.to_string())?;
            let (size, text) =
                parameters::read_png(BufReader::new(file)).ok_or("it is not a PNG file")?;
            Ok(described(first, (size, &text), count, now_unix_ms))
        }
    }
}

/// The job as its first image describes it.
fn described(
    first: &ImageFile,
    (size, text): (Dimensions, &str),
    count: u32,
    now_unix_ms: u64,
) -> (Entry, Ending) {
    let (job, prompt, scheduler, steps) = match parameters::parse(text, size) {
        Origin::Generated(generated) => {
            let Generated { request, pipeline, scheduler } = *generated;
            let (prompt, steps) = (request.prompt.clone(), request.steps.saturating_mul(count));
            let seed = request.seed.wrapping_sub(first.index as u64);
            let request = GenerateRequest { seed, n: count, ..request };
            (Job::Generation { request, pipeline }, prompt, scheduler, steps)
        }
        Origin::Upscaled { superres, before } => {
            let image = EncodedImage::default();
            (Job::Upscale { image, superres, parameters: before }, String::new(), None, 0)
        }
    };
    let superres = match &job {
        Job::Generation { request, .. } => request.superres.as_ref(),
        Job::Upscale { superres, .. } => Some(superres),
        Job::ModeSwitch { .. } | Job::Load { .. } | Job::Unload { .. } | Job::Custom { .. } => None,
    };
    let model = superres.map(|superres: &Superres| superres.model_name().to_owned());
    let report = DrawnReport {
        size,
        images: count,
        prompt_truncated: None,
        skipped_loras: Vec::new(),
        scheduler,
        encode_ms: 0,
        denoise_ms: 0,
        decode_ms: 0,
        peak_bytes: 0,
        steps,
        superres: model.map(|model| SuperresReport { model, superres_ms: 0 }),
    };
    let ending = Ending {
        state: JobState::Done,
        finished_unix_ms: now_unix_ms,
        drawing_unix_ms: None,
        result: None,
        report: Some(report),
        image_bytes: 0,
    };
    let terms = Terms { prompt, durable: true, ..Terms::default() };
    let arrived_ms = first.job.unix_ms().unwrap_or(now_unix_ms);
    (Entry { id: first.job, job, terms, arrived_ms }, ending)
}
