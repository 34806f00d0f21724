//! The kernel's rules for files, connections and signals: Landlock.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope, make_bitflags, path_beneath_rules,
};

pub const ENFORCED: &str = "confined by Landlock";
/// Its oldest version confines reading and writing files, and later ones the rest.
pub const PARTLY_ENFORCED: &str =
    "confined by Landlock, but for rules that this kernel is too old for";
pub const NOT_ENFORCED: &str = "not confined";

/// Files of the system: libraries, how many cores and how much memory there are, random numbers.
const SYSTEM: &[&str] = &[
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    "/opt",
    "/nix/store",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/sys/vm",
    "/sys/devices/system",
    "/sys/fs/cgroup",
    "/sys/kernel/mm",
    "/dev/random",
    "/dev/urandom",
];

/// What a card's driver reads besides.
const DRIVER: &[&str] = &["/dev", "/etc", "/proc/devices", "/proc/driver", "/proc/modules", "/sys"];

/// Devices that are written to.
const DEVICES: &[&str] = &["/dev/null", "/dev/zero"];

/// Those of a card, and the memory that its processes share.
const CARDS: &[&str] = &["/dev/nvidia", "/dev/dri", "/dev/shm"];

/// The newest rules that are asked for. Of those, the kernel takes what it has.
const RULES: ABI = ABI::V6;

/// Confines this thread, and those that it starts: it reads these paths and the system's, writes
/// nowhere, runs nothing, connects to nothing and signals nobody.
pub fn enter(readable: &[PathBuf], on_card: bool) -> Result<&'static str, RulesetError> {
    let read: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    let write = read | make_bitflags!(AccessFs::{WriteFile | IoctlDev});
    let write_all = write | make_bitflags!(AccessFs::{MakeReg | RemoveFile | Truncate});
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(RULES))?
        .handle_access(AccessNet::from_all(RULES))?
        .scope(Scope::from_all(RULES))?
        .create()?
        .add_rules(path_beneath_rules(readable, read))?
        .add_rules(path_beneath_rules(SYSTEM, read))?
        .add_rules(path_beneath_rules(libraries(), read))?
        .add_rules(path_beneath_rules(DEVICES, write))?;
    if on_card {
        rules = rules
            .add_rules(path_beneath_rules(DRIVER, read))?
            .add_rules(path_beneath_rules(cards(), write_all))?;
    }
    Ok(in_words(rules.restrict_self()?.ruleset))
}

/// For the log.
pub fn in_words(status: RulesetStatus) -> &'static str {
    match status {
        RulesetStatus::FullyEnforced => ENFORCED,
        RulesetStatus::PartiallyEnforced => PARTLY_ENFORCED,
        RulesetStatus::NotEnforced => NOT_ENFORCED,
    }
}

/// This program (for the names in a backtrace), and the folders of the libraries that it was started
/// with: those that they load later lie beside them.
fn libraries() -> BTreeSet<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mapped = maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])));
    let is_library = |path: &&Path| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.contains(".so"))
    };
    let folders = mapped.filter(is_library).filter_map(Path::parent).map(Path::to_owned);
    let searched = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let searched: Vec<PathBuf> = std::env::split_paths(&searched).collect();
    let searched = searched.into_iter().filter(|path| path.is_absolute());
    folders.chain(searched).chain(std::env::current_exe()).collect()
}

/// The device files of cards.
fn cards() -> Vec<PathBuf> {
    let devices = fs::read_dir("/dev").into_iter().flatten().flatten().map(|entry| entry.path());
    let is_card = |path: &PathBuf| {
        path.to_str().is_some_and(|path| CARDS.iter().any(|card| path.starts_with(card)))
    };
    devices.filter(is_card).collect()
}
