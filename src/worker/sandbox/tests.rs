//! The sandbox for real. It holds for the thread that enters it, so each test enters it on a thread
//! of its own.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind},
    net::{TcpListener, TcpStream},
    os::unix::net::{UnixDatagram, UnixStream},
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use super::*;

/// What `attempt` comes to within the sandbox, where these paths may be read; and whether the kernel
/// confines files.
fn within<T: Send + 'static>(
    readable: &[&Path],
    attempt: impl FnOnce() -> T + Send + 'static,
) -> (T, bool) {
    let readable: Vec<PathBuf> = readable.iter().map(|path| path.canonicalize().unwrap()).collect();
    let confined = thread::spawn(move || {
        let granted = enter(Sandbox::Auto, true, &readable);
        (attempt(), granted.outside([Path::new("/")]).is_some())
    });
    confined.join().unwrap()
}

fn is_denied<T>(result: io::Result<T>) -> bool {
    result.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

#[test]
fn files_outside_are_neither_read_nor_written() {
    let folder = tempfile::tempdir().unwrap();
    let (models, other) = (folder.path().join("models"), folder.path().join("other"));
    for folder in [&models, &other] {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join("file"), "x").unwrap();
    }
    let (inside, outside) = (models.clone(), other.clone());
    let (seen, has_landlock) = within(&[&models], move || {
        [
            is_denied(fs::read(inside.join("file"))),
            is_denied(fs::read_dir(&inside)),
            is_denied(File::open("/dev/null")),
            is_denied(fs::read_to_string("/proc/self/status")),
            is_denied(fs::read_to_string("/proc/meminfo")),
            is_denied(fs::read(outside.join("file"))),
            is_denied(fs::read_dir(&outside)),
            is_denied(fs::write(inside.join("file"), "y")),
            is_denied(File::create(inside.join("new"))),
            is_denied(fs::remove_file(inside.join("file"))),
            is_denied(OpenOptions::new().write(true).open(outside.join("file"))),
            is_denied(fs::read_to_string("/proc/1/status")),
        ]
    });
    let (allowed, denied) = seen.split_at(5);
    assert_eq!(allowed, [false; 5]);
    // Without Landlock, root may do all of it.
    assert_eq!(denied, [has_landlock; 7]);
}

#[test]
fn programs_foreign_sockets_and_kernel_interfaces_are_denied() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (denied, _) = within(&[], move || {
        // SAFETY: these calls fail before they look at an argument.
        let calls = [libc::SYS_ptrace, libc::SYS_bpf, libc::SYS_io_uring_setup, libc::SYS_unshare]
            .map(|call| unsafe { libc::syscall(call, 0, 0, 0, 0) })
            .map(|result| {
                is_denied(if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) })
            });
        // SAFETY: signal 0 reaches nobody.
        let signal = unsafe { libc::kill(1, 0) } == -1;
        let others = [
            is_denied(Command::new("/bin/true").status()),
            is_denied(TcpStream::connect(address)),
            is_denied(TcpListener::bind("127.0.0.1:0")),
            is_denied(UnixDatagram::unbound()),
            signal,
        ];
        (calls, others)
    });
    assert_eq!(denied, ([true; 4], [true; 5]));
}

#[test]
fn the_log_says_what_is_confined_and_no_more() {
    use ::landlock::RulesetStatus;

    let words = [RulesetStatus::FullyEnforced, RulesetStatus::PartiallyEnforced];
    assert_eq!(
        words.map(landlock::in_words),
        [
            "confined by Landlock",
            "confined by Landlock, but for rules that this kernel is too old for"
        ]
    );
    assert_eq!(landlock::in_words(RulesetStatus::NotEnforced), "not confined");
    let calls = syscalls::enter("sparc", true).unwrap();
    assert_eq!(calls, "not filtered: there is no filter for this processor");
}

#[test]
fn an_engine_works_inside() {
    let (worked, _) = within(&[], || {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let sum: u64 = pool.install(|| {
            use rayon::prelude::*;
            (0..1000_u64).into_par_iter().sum()
        });
        let memory = vec![1_u8; 64 << 20];
        sum == 499_500
            && memory.iter().all(|byte| *byte == 1)
            && UnixStream::pair().is_ok()
            && thread::available_parallelism().is_ok()
            && std::panic::catch_unwind(|| std::panic::resume_unwind(Box::new(1))).is_err()
    });
    assert!(worked);
}
