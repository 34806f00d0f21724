use super::*;
use crate::request::RequestField;

#[test]
fn each_failure_of_a_job_has_its_status_and_names_the_job() {
    let job = JobId::new();
    for (kind, status, name, retries) in [
        (FailureKind::UnusableModel, 500, "model-unusable", false),
        (FailureKind::UnusableLora { index: 0 }, 500, "model-unusable", false),
        (
            FailureKind::InvalidRequest { field: RequestField::ClipSkip },
            422,
            "invalid-request",
            false,
        ),
        (FailureKind::NoRoom, 422, "no-room", false),
        (FailureKind::OutOfMemory, 503, "out-of-memory", true),
        (FailureKind::TimedOut, 504, "timed-out", false),
        (FailureKind::WorkerDied, 500, "worker-died", false),
        (FailureKind::Handler, 500, "handler-failed", false),
        (FailureKind::ShuttingDown, 503, "shutting-down", true),
        (FailureKind::Internal, 500, "internal", false),
    ] {
        let failure = JobFailure { kind, message: "why".to_owned() };
        let problem = Problem::of_job(failure, job);
        assert_eq!(problem.kind().parts().1, name);
        let response = problem.to_response("/x");
        assert_eq!(response.status().as_u16(), status, "{name}");
        assert_eq!(response.headers()[X_JOB_ID], job.to_string().as_str(), "{name}");
        assert_eq!(response.headers().contains_key(header::RETRY_AFTER), retries, "{name}");
    }
}
