//! What the running job's image looks like, for whoever wants to see it grow.
//!
//! Only the latest preview is there: a reader that is slow misses some, and delays nobody.

use std::sync::Arc;

use tokio::sync::watch;

use crate::job::JobId;

/// A small picture of an image on its way.
#[derive(Clone, PartialEq)]
pub struct Preview {
    pub job: JobId,
    /// After which step, of how many.
    pub step: u32,
    pub steps: u32,
    pub width: u32,
    pub height: u32,
    /// Rows top to bottom, three bytes a pixel.
    pub rgb: Vec<u8>,
}

impl Preview {
    /// The longest side.
    const MAX_SIDE: u32 = 128;

    fn is_whole(&self) -> bool {
        let sides = 1..=Self::MAX_SIDE;
        sides.contains(&self.width)
            && sides.contains(&self.height)
            && self.rgb.len() as u32 == 3 * self.width * self.height
    }
}

/// Where the latest one is, if a job runs that has one.
#[derive(Clone, Default)]
pub struct SharedPreviews(Arc<watch::Sender<Option<Arc<Preview>>>>);

impl SharedPreviews {
    pub fn show(&self, preview: Preview) {
        if preview.is_whole() {
            self.0.send_replace(Some(Arc::new(preview)));
        } else {
            tracing::warn!(job = %preview.job, "the worker sent a preview that is none");
        }
    }

    /// The job has ended.
    pub fn clear(&self) {
        self.0.send_if_modified(|latest| latest.take().is_some());
    }

    pub fn follow(&self, job: Option<JobId>) -> Previews {
        let mut latest = self.0.subscribe();
        // What is there already is news to a new reader.
        latest.mark_changed();
        Previews { latest, job }
    }
}

/// A reader of previews, of one job or of all.
pub struct Previews {
    latest: watch::Receiver<Option<Arc<Preview>>>,
    job: Option<JobId>,
}

impl Previews {
    /// The next one; may never come. Nothing is lost if this is not awaited to its end.
    pub async fn next(&mut self) -> Arc<Preview> {
        while self.latest.changed().await.is_ok() {
            let latest = self.latest.borrow_and_update().clone();
            let is_wanted = |preview: &Arc<Preview>| self.job.is_none_or(|job| job == preview.job);
            if let Some(preview) = latest.filter(is_wanted) {
                return preview;
            }
        }
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preview(job: JobId, step: u32) -> Preview {
        Preview { job, step, steps: 9, width: 2, height: 1, rgb: vec![0; 6] }
    }

    /// What comes without waiting.
    async fn ready(previews: &mut Previews) -> Option<(JobId, u32)> {
        tokio::select! {
            biased;
            preview = previews.next() => Some((preview.job, preview.step)),
            () = std::future::ready(()) => None,
        }
    }

    #[tokio::test]
    async fn a_reader_is_shown_the_latest_one_of_its_job_and_once() {
        let (a, b) = (JobId::new(), JobId::new());
        let shared = SharedPreviews::default();
        let mut early = shared.follow(Some(a));
        assert_eq!(ready(&mut early).await, None);
        shared.show(preview(a, 1));
        shared.show(preview(a, 2));
        assert_eq!(ready(&mut early).await, Some((a, 2)));
        assert_eq!(ready(&mut early).await, None);
        let (mut late, mut of_all) = (shared.follow(Some(b)), shared.follow(None));
        assert_eq!(ready(&mut late).await, None);
        assert_eq!(ready(&mut of_all).await, Some((a, 2)));
        shared.clear();
        assert_eq!(ready(&mut shared.follow(None)).await, None);
        shared.show(preview(b, 1));
        let shown = [ready(&mut early).await, ready(&mut late).await, ready(&mut of_all).await];
        assert_eq!(shown, [None, Some((b, 1)), Some((b, 1))]);
    }

    #[tokio::test]
    async fn what_is_no_picture_is_not_shown() {
        let shared = SharedPreviews::default();
        let job = JobId::new();
        shared.show(Preview { rgb: vec![0; 5], ..preview(job, 1) });
        shared.show(Preview { width: 129, rgb: vec![0; 387], ..preview(job, 1) });
        shared.show(Preview { width: 0, rgb: vec![], ..preview(job, 1) });
        assert_eq!(ready(&mut shared.follow(None)).await, None);
    }
}
