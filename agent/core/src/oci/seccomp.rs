//! Owns the default system call filter: what Docker's default profile allows, as a table of names with the
//! conditions under which they are allowed. Never loads a filter; names a kernel or libseccomp does not know are
//! passed over by the runtime.
//!
//! Everything not named fails with EPERM. Reference: <https://docs.docker.com/engine/security/seccomp/>.

use serde_json::{Value, json};

use super::Arch;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// Allowed always, by subject.
const ALWAYS: [&str; 14] = [
    // Files by path.
    "access chdir chmod chown chown32 creat faccessat faccessat2 fchdir fchmodat fchmodat2 fchownat fstatat64 \
     futimesat getcwd lchown lchown32 link linkat lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at \
     newfstatat open openat openat2 readlink readlinkat rename renameat renameat2 rmdir stat stat64 statfs statfs64 \
     statx symlink symlinkat truncate truncate64 unlink unlinkat utime utimensat utimensat_time64 utimes",
    // Files by descriptor.
    "_llseek cachestat close close_range copy_file_range dup dup2 dup3 fadvise64 fadvise64_64 fallocate fchmod fchown \
     fchown32 fcntl fcntl64 fdatasync flock fstat fstat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 getdents \
     getdents64 ioctl lseek pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readv sendfile \
     sendfile64 splice sync sync_file_range syncfs tee umask vmsplice write writev",
    // Extended attributes.
    "fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat llistxattr \
     lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat",
    // Watching.
    "_newselect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old \
     eventfd eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch poll ppoll \
     ppoll_time64 pselect6 pselect6_time64 select signalfd signalfd4",
    // Asynchronous input and output; io_uring is left out on purpose.
    "io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioprio_get ioprio_set",
    // Sockets; socket(2) itself has a rule of its own.
    "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64 \
     recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair",
    // Memory.
    "brk get_thread_area madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall \
     mmap mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect \
     remap_file_pages set_thread_area",
    // System V and POSIX inter-process communication.
    "ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 \
     mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget",
    // Processes; clone(2) and clone3(2) have rules of their own.
    "capget capset execve execveat exit exit_group fork getpgid getpgrp getpid getppid getrlimit getrusage getsid \
     gettid kill landlock_add_rule landlock_create_ruleset landlock_restrict_self pidfd_open pidfd_send_signal prctl \
     prlimit64 process_mrelease seccomp set_tid_address setpgid setrlimit setsid tgkill times tkill ugetrlimit \
     uretprobe vfork wait4 waitid waitpid",
    // Who one is.
    "getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid getresgid32 getresuid \
     getresuid32 getuid getuid32 setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 \
     setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setuid setuid32",
    // Signals.
    "pause restart_syscall rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend \
     rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack sigprocmask sigreturn",
    // Threads and scheduling.
    "futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake get_robust_list getcpu getpriority rseq \
     sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler \
     sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam \
     sched_setscheduler sched_yield set_robust_list setpriority",
    // Time.
    "adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 \
     clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time timer_create timer_delete \
     timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime \
     timerfd_gettime64 timerfd_settime timerfd_settime64",
    // The system.
    "getrandom listmount riscv_hwprobe statmount sysinfo uname",
];

/// Allowed to a container that has the capability.
const BY_CAPABILITY: [(&str, &str); 14] = [
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr \
         lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl \
         quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    ("CAP_BPF", "bpf"),
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    ("CAP_PERFMON", "perf_event_open"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module finit_module init_module"),
    (
        "CAP_SYS_NICE",
        "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    ),
    ("CAP_SYS_PACCT", "acct"),
    (
        "CAP_SYS_PTRACE",
        "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    ),
    ("CAP_SYS_RAWIO", "ioperm iopl"),
    ("CAP_SYS_TIME", "clock_settime clock_settime64 settimeofday stime"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
];

/// Since 4.8 a tracer cannot leave its own filter behind by tracing.
const TRACING: (&str, (u32, u32)) = ("process_vm_readv process_vm_writev ptrace", (4, 8));

/// The address families of socket(2): all but AF_ALG (38: the kernel's cryptography, an attack surface) and AF_VSOCK
/// (40: reaches virtual machines around every network policy).
const FAMILIES: [(&str, u64); 3] = [("SCMP_CMP_LT", 38), ("SCMP_CMP_EQ", 39), ("SCMP_CMP_GT", 40)];

/// PER_LINUX and PER_LINUX32, each with and without UNAME26, and the question which it is.
const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// CLONE_NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, NEWCGROUP.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// The filter for a container with these capabilities; none for an architecture the table does not cover.
pub fn profile(arch: Arch, kernel: (u32, u32), capabilities: &[&str]) -> Option<Value> {
    let (architectures, of_arch) = match arch {
        // Every architecture costs a start several milliseconds, as runtimes compile the filter each time.
        Arch::X86_64 { x32: false } => (
            ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"].as_slice(),
            "arch_prctl modify_ldt",
        ),
        Arch::X86_64 { x32: true } => (
            ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"].as_slice(),
            "arch_prctl modify_ldt",
        ),
        Arch::Aarch64 => (
            ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"].as_slice(),
            "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2",
        ),
        Arch::Other => return None,
    };
    let held = |capability: &str| capabilities.contains(&capability);
    let mut names: Vec<&str> = ALWAYS.iter().flat_map(|group| group.split_whitespace()).collect();
    names.extend(of_arch.split_whitespace());
    if kernel >= TRACING.1 {
        names.extend(TRACING.0.split_whitespace());
    }
    for (_, group) in BY_CAPABILITY.iter().filter(|(capability, _)| held(capability)) {
        names.extend(group.split_whitespace());
    }
    names.sort_unstable();
    names.dedup();

    let mut rules = vec![json!({"names": names, "action": "SCMP_ACT_ALLOW"})];
    rules.extend(FAMILIES.map(|(comparison, family)| allow_first_argument("socket", comparison, family)));
    rules.extend(PERSONALITIES.map(|which| allow_first_argument("personality", "SCMP_CMP_EQ", which)));
    if !held("CAP_SYS_ADMIN") {
        // clone3's flags are behind a pointer: ENOSYS sends libraries back to clone, whose flags can be seen.
        rules.push(allow_first_argument(
            "clone",
            "SCMP_CMP_MASKED_EQ",
            CLONE_NAMESPACES,
        ));
        rules.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS}));
    }
    Some(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "architectures": architectures,
        "syscalls": rules,
    }))
}

/// Rules for one call are alternatives: runtimes read several comparisons of one argument in one rule as "or".
fn allow_first_argument(name: &str, comparison: &str, value: u64) -> Value {
    json!({
        "names": [name],
        "action": "SCMP_ACT_ALLOW",
        "args": [{"index": 0, "value": value, "valueTwo": 0, "op": comparison}],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::DEFAULT_CAPABILITIES;

    const X86_64: Arch = Arch::X86_64 { x32: false };

    fn allowed(profile: &Value) -> Vec<&str> {
        profile["syscalls"][0]["names"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect()
    }

    #[test]
    fn calls_that_depend_on_their_first_argument_are_rules_of_their_own() {
        let profile = profile(X86_64, (6, 1), &DEFAULT_CAPABILITIES).unwrap();
        let rules = profile["syscalls"].as_array().unwrap();
        let linux32 = json!({
            "names": ["personality"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 8, "valueTwo": 0, "op": "SCMP_CMP_EQ"}],
        });
        assert!(rules.contains(&linux32));
        for name in ["socket", "personality", "clone"] {
            let of = rules.iter().filter(|rule| rule["names"] == json!([name]));
            assert!(of.count() > 0, "{name}");
        }
    }

    #[test]
    fn what_reaches_the_host_is_not_allowed_by_default() {
        let profile = profile(X86_64, (6, 1), &DEFAULT_CAPABILITIES).unwrap();
        let allowed = allowed(&profile);
        for name in [
            "mount",
            "umount2",
            "unshare",
            "setns",
            "bpf",
            "reboot",
            "init_module",
            "keyctl",
            "add_key",
            "request_key",
            "kexec_load",
            "swapon",
            "pivot_root",
            "io_uring_setup",
            "userfaultfd",
            "open_by_handle_at",
            "clone",
            "clone3",
            "socket",
            "personality",
            "settimeofday",
            "perf_event_open",
            "move_pages",
            "nfsservctl",
        ] {
            assert!(!allowed.contains(&name), "{name}");
        }
        for name in [
            "read",
            "execve",
            "chroot",
            "ptrace",
            "arch_prctl",
            "rseq",
            "futex_waitv",
        ] {
            assert!(allowed.contains(&name), "{name}");
        }
    }

    #[test]
    fn kernel_architecture_and_capabilities_widen_it() {
        let old = profile(X86_64, (4, 4), &[]).unwrap();
        assert!(!allowed(&old).contains(&"ptrace") && !allowed(&old).contains(&"chroot"));
        let traced = profile(X86_64, (4, 4), &["CAP_SYS_PTRACE"]).unwrap();
        assert!(allowed(&traced).contains(&"ptrace"));
        let admin = profile(Arch::Aarch64, (6, 1), &["CAP_SYS_ADMIN"]).unwrap();
        assert!(allowed(&admin).contains(&"mount") && allowed(&admin).contains(&"clone3"));
        assert!(allowed(&admin).contains(&"cacheflush") && !allowed(&admin).contains(&"arch_prctl"));
        assert!(!admin.to_string().contains("SCMP_ACT_ERRNO\",\"errnoRet\":38"));
        assert_eq!(
            admin["architectures"],
            json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"])
        );
        assert_eq!(old["architectures"], json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]));
        let x32 = profile(Arch::X86_64 { x32: true }, (6, 1), &[]).unwrap();
        assert_eq!(x32["architectures"].as_array().unwrap().len(), 3);
        assert_eq!(profile(Arch::Other, (6, 1), &[]), None);
    }

    #[test]
    fn no_name_is_written_twice() {
        let mut names: Vec<&str> = ALWAYS.iter().flat_map(|group| group.split_whitespace()).collect();
        let written = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), written);
    }
}
