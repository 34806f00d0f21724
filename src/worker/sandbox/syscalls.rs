//! System calls that the worker never needs. They fail with EPERM, as they do for a user without
//! privileges, so that a library that tries one goes on.
//!
//! A list of what is denied, since a card's driver makes calls that nobody has listed.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, SeccompCondition,
    SeccompFilter, SeccompRule, apply_filter,
};

/// Denied whatever the arguments are.
const DENIED: &[i64] = &[
    // Other programs.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Other processes.
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kcmp,
    // The file system's shape, and ways around its permissions.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_by_handle_at,
    libc::SYS_unshare,
    libc::SYS_setns,
    // The kernel itself.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
];

/// Filters the system calls of this thread and of those that it starts. Returns what became of it,
/// for the log.
pub fn enter(architecture: &str, is_on_cpu: bool) -> Result<&'static str, Error> {
    let Ok(architecture) = architecture.try_into() else {
        return Ok("not filtered: there is no filter for this processor");
    };
    let filter = SeccompFilter::new(
        rules(is_on_cpu)?,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM as u32),
        architecture,
    )?;
    let program: BpfProgram = filter.try_into()?;
    apply_filter(&program)?;
    Ok("filtered")
}

fn rules(is_on_cpu: bool) -> Result<BTreeMap<i64, Vec<SeccompRule>>, Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        DENIED.iter().map(|call| (*call, Vec::new())).collect();
    let is_not = |index: u8, value: u64| SeccompCondition::new(index, Dword, Ne, value);
    // A card's libraries talk to its daemons by local sockets, and ask the kernel about devices over
    // netlink. The CPU's need none; local sockets lead to other services (a container daemon's).
    let local = [libc::AF_UNIX, libc::AF_NETLINK].map(|family| is_not(0, family as u64));
    let foreign = SeccompRule::new(local.into_iter().collect::<Result<_, _>>()?)?;
    rules.insert(libc::SYS_socket, if is_on_cpu { Vec::new() } else { vec![foreign] });
    // A thread may signal its own process: that is how one aborts.
    let others = SeccompRule::new(vec![is_not(0, std::process::id().into())?])?;
    rules.insert(libc::SYS_tgkill, vec![others.clone()]);
    rules.insert(libc::SYS_rt_tgsigqueueinfo, vec![others]);
    #[cfg(target_arch = "x86_64")]
    deny_x32(&mut rules);
    Ok(rules)
}

/// The same calls have numbers of their own where the kernel has the x32 interface, which nobody
/// uses: none of those that are denied, and none of the few that it counts differently.
#[cfg(target_arch = "x86_64")]
fn deny_x32(rules: &mut BTreeMap<i64, Vec<SeccompRule>>) {
    const X32: i64 = 0x4000_0000;
    let counted_alike: Vec<i64> = rules.keys().copied().collect();
    for call in counted_alike.into_iter().chain(512..548) {
        rules.insert(X32 | call, Vec::new());
    }
}
