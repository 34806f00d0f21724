//! Loading as a transaction: prepare → make room → read → activate, or all is as it was before.
//!
//! What is refused while it is prepared, or has no room, costs nothing that is loaded. Where the
//! current mode had to go first and the new one fails, the old one is loaded again; where that
//! fails, too, the daemon is degraded until a switch succeeds.

use super::{
    Actor,
    running::{Loading, Phase},
};
use crate::{
    dispatcher::{FailureKind, JobFailure, Outcome, limits::Limit},
    job::{Job, JobState, SwitchOrigin},
    modes::{LoraReport, gib},
    queue::Target,
    vram::{
        GpuInfo, Loaded, Reason, host,
        ledger::{Estimate, Held, PipelineId},
        plan::{NoRoom, Plan},
    },
    worker::protocol::{LoadReport, ToWorker},
};

impl Actor {
    /// What the worker may allocate on its device in all, as things are.
    pub(super) fn limit_bytes(&self) -> u64 {
        self.registry.limit(self.device_bytes())
    }

    /// The same, whatever the configuration says.
    fn device_bytes(&self) -> u64 {
        match self.registry.is_on_card() {
            true => self.registry.available_on_card(&self.cards_now()),
            false => host::available_to(self.worker.pid()),
        }
    }

    /// The last measurement may be from before what was just loaded or has just left.
    fn cards_now(&self) -> Vec<GpuInfo> {
        let now = self.cards.now(self.worker.pid());
        now.unwrap_or_else(|| self.readings.borrow().gpus.clone())
    }

    /// Asks the worker what a pipeline would take.
    pub(super) fn prepare(&mut self, target: Target) {
        let Some(running) = &mut self.running else { return };
        let (job, id) = (running.id(), self.registry.new_id());
        let (pipeline, keep) = (target.pipeline.clone(), self.registry.memory().keep());
        let (estimate, after) = (Estimate::default(), Vec::new());
        running.loaded = true;
        running.phase = Phase::Loading(Box::new(Loading { id, target, estimate, after }));
        self.jobs.set_state(job, JobState::Loading { percent: 0 });
        self.worker.send(ToWorker::Prepare { job, id, pipeline, keep });
    }

    /// It is known what the pipeline takes: makes room for it, if that can be.
    pub(super) fn on_prepared(&mut self, estimate: Estimate) {
        let device_bytes = self.device_bytes();
        let Some(running) = &mut self.running else { return };
        if running.stopped.is_some() && running.failed.is_none() {
            return self.on_load_cancelled();
        }
        let job = running.id();
        let takes_over = !matches!(running.entry.job, Job::Load { .. });
        let Phase::Loading(loading) = &mut running.phase else { return };
        let now_ms = self.clock.now_ms();
        let new = (loading.id, &loading.target.pipeline);
        let plan = self.registry.plan(new, &estimate, takes_over, device_bytes, now_ms);
        let Plan { before, after } = match plan {
            Ok(plan) => plan,
            Err(no_room) => {
                let failure = no_room_for(&loading.target.mode, &no_room);
                return self.on_load_failed(failure);
            }
        };
        (loading.estimate, loading.after) = (estimate, after);
        self.registry.count_evictions(Reason::Memory, before.len());
        let limit_bytes = self.registry.limit(device_bytes);
        // What drew before need not prove it on the way back.
        let verify = self.registry.memory().verify && running.failed.is_none();
        self.worker.send(ToWorker::Load { job, unload: before, limit_bytes, verify });
    }

    pub(super) fn on_loaded(&mut self, report: &LoadReport, held: Held) {
        let Some(running) = &mut self.running else { return };
        let Phase::Loading(loading) = std::mem::replace(&mut running.phase, Phase::AwaitsWorker)
        else {
            return;
        };
        let Loading { id, target, estimate, after } = *loading;
        tracing::info!(mode = target.mode, family = report.family, ms = report.load_ms, "loaded");
        for LoraReport { name, merged, unmatched, skipped, .. } in &report.loras {
            match skipped {
                Some(reason) => tracing::warn!(lora = name, "left out: {reason}"),
                None => tracing::info!(lora = name, merged, unmatched, "merged"),
            }
        }
        self.counters.loaded(report);
        let loaded = Loaded {
            id,
            mode: target.mode,
            pipeline: target.pipeline,
            family: report.family.clone(),
            estimated_bytes: estimate.weights_bytes(),
            components: estimate.components,
            measured_bytes: report.measured_bytes,
            load_ms: report.load_ms,
            merge_ms: report.merge_ms,
            loras: report.loras.clone(),
        };
        self.registry.record_loaded(loaded, held, self.clock.now_ms());
        self.forget_lost_mode();
        self.unload(&after, Reason::MaxModels);
        self.drive();
    }

    /// The load was stopped: what had to make room for it comes back.
    pub(super) fn on_load_cancelled(&mut self) {
        let message = "its load was stopped".to_owned();
        self.on_load_failed(JobFailure { kind: FailureKind::Internal, message });
    }

    /// What was to be loaded cannot be: the mode that was current before is current again.
    pub(super) fn on_load_failed(&mut self, failure: JobFailure) {
        let Some(running) = &mut self.running else { return };
        if let Some(first) = running.failed.take() {
            let before = running.before.as_ref().map_or("", |target| &target.mode);
            let message = format!(
                "{first}; and mode '{before}', which was current before, cannot be loaded again: {failure}"
            );
            tracing::error!("no mode is current: {message}");
            self.degraded = Some(message.clone());
            let failure = JobFailure { kind: first.kind, message };
            return self.finish_running(Outcome::Failed(failure));
        }
        let goal = running.goal().map(|goal| goal.pipeline);
        let lost = running.before.as_ref().filter(|before| {
            Some(&before.pipeline) != goal.as_ref()
                && self.registry.find(&before.pipeline).is_none()
        });
        if let Some(before) = lost.filter(|_| self.drain_until.is_none()) {
            tracing::warn!(mode = before.mode, "is loaded again, since: {failure}");
            running.failed = Some(failure);
            running.attempts = 1;
            running.made_room = false;
            // The load back is not what the worker was told to stop.
            self.limits.lift(running.entry.id, Limit::Stopping);
            return self.drive();
        }
        self.finish_running(Outcome::Failed(failure));
    }

    /// That pipeline is now the current mode's.
    pub(super) fn activate(&mut self, id: PipelineId, target: Target) {
        self.registry.set_active(Some(id));
        self.queue.set_loaded(Some(target));
    }

    /// Has the worker let go of pipelines; they do not count any more.
    pub(super) fn unload(&mut self, ids: &[PipelineId], reason: Reason) {
        if !ids.is_empty() {
            self.let_go(ids, false, reason);
        }
    }

    /// The same, and of the upscaler if that is said.
    pub(super) fn let_go(&mut self, ids: &[PipelineId], upscaler: bool, reason: Reason) {
        tracing::info!(modes = ?self.registry.modes(ids), reason = reason.name(), "unloaded");
        self.registry.count_evictions(reason, ids.len());
        self.registry.remove(ids);
        self.forget_lost_mode();
        self.worker.send(ToWorker::Unload { pipelines: ids.to_vec(), upscaler });
    }

    pub(super) fn on_unloaded(&mut self, held: Held) {
        let is_empty = held.pipelines.is_empty();
        self.reconcile(held);
        if let Some(running) = &mut self.running
            && let Phase::Unloading(modes) = &mut running.phase
        {
            let modes = std::mem::take(modes);
            self.finish_running(Outcome::Unloaded(modes));
        }
        if is_empty && self.running.is_none() {
            self.give_memory_back();
        }
    }

    /// Starts the worker anew where it holds nothing and still has more than at its start: what an
    /// allocator keeps, only the end of its process gives back.
    fn give_memory_back(&mut self) {
        let kept = match self.registry.is_on_card() {
            true => self.registry.keeps_of_card(&self.cards_now()),
            false => {
                let now = self.worker.pid().and_then(host::anonymous_bytes);
                let both = now.zip(self.memory_at_start);
                both.filter(|(now, at_start)| *now > at_start + at_start / 50)
                    .map(|(now, at_start)| now - at_start)
            }
        };
        if let Some(bytes) = kept {
            tracing::info!(bytes, "the worker holds nothing, keeps so much and is started anew");
            self.worker.start_anew();
            self.watchdog.reset();
            self.reconcile(Held::default());
        }
    }

    /// Nothing is to be done: what was lost comes back, and what nobody needs any more goes.
    pub(super) fn when_idle(&mut self) {
        if self.running.is_some() || self.queue.waiting() > 0 || !self.worker.is_ready() {
            return;
        }
        if !self.queue.is_paused() {
            self.load_lost();
        }
        if self.running.is_none() {
            self.unload_idle();
        }
    }

    /// One after the other; one that fails is given up.
    fn load_lost(&mut self) {
        while self.running.is_none()
            && let Some(Target { mode, pipeline }) = self.lost.pop()
        {
            let job = if mode == self.queue.selected_mode() && self.queue.loaded().is_none() {
                let (asked_by, timeout_secs) = (SwitchOrigin::Reload, None);
                Job::ModeSwitch { mode, pipeline, asked_by, timeout_secs }
            } else if self.registry.find(&pipeline).is_some() {
                continue;
            } else {
                Job::Load { mode, pipeline, warm_up: false }
            };
            self.append(job);
            self.start_what_can_be_started();
        }
    }

    /// The worker is gone, and all with it.
    pub(super) fn note_lost(&mut self) {
        let pinned = self.registry.pinned();
        let pinned = pinned.map(|(mode, pipeline)| Target { mode, pipeline });
        // It may have had to make room for what the running job loads.
        let is_loading = |phase: &Phase| matches!(phase, Phase::Loading(_) | Phase::AwaitsWorker);
        let loading = self.running.as_ref().filter(|running| is_loading(&running.phase));
        let before = loading.and_then(|running| running.before.as_ref());
        let current = self.queue.loaded().or(before).cloned();
        let lost: Vec<Target> = pinned.chain(current).collect();
        // What has not come back yet since an earlier death comes behind.
        self.lost.retain(|target| !lost.contains(target));
        self.lost.extend(lost);
    }

    fn unload_idle(&mut self) {
        let idle = self.registry.idle(self.clock.now_ms());
        for reason in [Reason::Unwanted, Reason::Idle] {
            let leaving = idle.iter().filter(|(_, why)| *why == reason);
            let leaving: Vec<_> = leaving.map(|(id, _)| *id).collect();
            self.unload(&leaving, reason);
        }
    }

    /// The worker holds that, and nothing else.
    pub(super) fn reconcile(&mut self, held: Held) {
        self.registry.reconcile(held);
        self.forget_lost_mode();
    }

    /// A mode whose pipeline is gone is not the current one any more.
    fn forget_lost_mode(&mut self) {
        if self.registry.active().is_none() {
            self.queue.set_loaded(None);
        }
    }
}

fn no_room_for(mode: &str, no_room: &NoRoom) -> JobFailure {
    let message = match *no_room {
        NoRoom::TooLarge { needed_bytes, available_bytes } => format!(
            "mode '{mode}' needs {:.2} GiB, and {:.2} GiB is all there is for models",
            gib(needed_bytes),
            gib(available_bytes)
        ),
        NoRoom::BesideOthers { needed_bytes, available_bytes } => format!(
            "mode '{mode}' does not fit beside what stays loaded (the current mode's and pinned ones): \
             together {:.2} GiB, and {:.2} GiB is all there is for models",
            gib(needed_bytes),
            gib(available_bytes)
        ),
        NoRoom::TooMany { max_models } => format!(
            "mode '{mode}' would be one more than max_models ({max_models}), and all that are loaded \
             stay (the current mode's and pinned ones)"
        ),
    };
    JobFailure { kind: FailureKind::NoRoom, message }
}
