//! Owns what can go wrong with a container, in ECS's words. Never retries.

use std::{error::Error, io, path::PathBuf, time::Duration};

use berth_agent_core::{
    event::Failure,
    ids::TaskId,
    oci::{OciError, user::UserError},
};
use tonic::{Code, Status};

use super::{AppArmorError, SeccompError};
use crate::{
    effects::{gpus::GpuError, quotas::QuotaError, volumes::VolumeError},
    logs::UnsafeName,
};

/// Bytes of a reason that are kept: ECS cuts at 1,024, and the kind comes before it.
const MESSAGE_BYTES_MAX: usize = 900;

/// What was being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Version,
    Prepare,
    Record,
    Create,
    Start,
    Exec,
    Inspect,
    Kill,
    Wait,
    Delete,
    DeleteRecord,
    RemoveSnapshot,
    List,
    Watch,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Version => "ask containerd's version",
            Self::Prepare => "prepare the snapshot",
            Self::Record => "create the record",
            Self::Create => "create the process",
            Self::Start => "start the process",
            Self::Exec => "execute a process in the container",
            Self::Inspect => "inspect",
            Self::Kill => "signal",
            Self::Wait => "wait for the end",
            Self::Delete => "delete the process",
            Self::DeleteRecord => "delete the record",
            Self::RemoveSnapshot => "remove the snapshot",
            Self::List => "list",
            Self::Watch => "watch events",
        })
    }
}

/// What containerd answered instead of doing it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("containerd: {message} ({code:?})")]
pub struct Answer {
    pub code: Code,
    /// One line.
    pub message: String,
}

/// Why an effect on a container failed.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("the container cannot be described")]
    Spec { id: String, source: OciError },
    #[error("the container has no place for its log")]
    Log { id: String, source: UnsafeName },
    #[error("user {user:?}")]
    User {
        id: String,
        user: String,
        source: UserError,
    },
    #[error("read the accounts of the image")]
    Accounts { id: String, source: io::Error },
    #[error("user {user:?} needs the image's accounts, which a {kind:?} mount does not show")]
    OpaqueSnapshot { id: String, user: String, kind: String },
    #[error("write {}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("list the host's devices for a privileged container")]
    Devices { source: io::Error },
    #[error(transparent)]
    Volumes(#[from] VolumeError),
    #[error("device {path} of {id}")]
    Device {
        id: String,
        path: String,
        source: io::Error,
    },
    #[error("AppArmor profile {name:?} cannot be used")]
    AppArmor {
        id: String,
        name: String,
        source: AppArmorError,
    },
    #[error("seccomp profile {name:?} cannot be used")]
    Seccomp {
        id: String,
        name: String,
        source: SeccompError,
    },
    #[error("ephemeralStorage of {id}")]
    Quota { id: String, source: QuotaError },
    #[error("GPUs of {id}")]
    Gpus { id: String, source: GpuError },
    #[error("{step} of {id}")]
    Call { step: Step, id: String, source: Answer },
    /// The OCI runtime's own words.
    #[error("{message}")]
    Refused { step: Step, id: String, message: String },
    #[error("{step} of {id}: no answer from containerd in {} s", after.as_secs())]
    Deadline { step: Step, id: String, after: Duration },
    /// It would run with loopback alone, unreachable and unable to say why.
    #[error("{id} is of an awsvpc task whose network namespace was not given")]
    NoNetwork { id: String },
    /// It was taken out of the configuration after the task was placed.
    #[error("this node has no runtime {name:?}: `runtimes` of its configuration lacks it")]
    NoRuntime { id: String, name: String },
    #[error(
        "the process that holds the namespaces which the containers of task {task} share has ended: start the task anew"
    )]
    HolderEnded { task: TaskId },
    #[error(
        "{runtime} cannot put containers into namespaces of another: pidMode and ipcMode task need runc or crun"
    )]
    CannotShare { id: String, runtime: String },
    #[error("the logger of {id} did not register")]
    NoLogger { id: String },
    #[error("containerd gets no answer of {id} from its shim: whether it runs is not known")]
    Silent { id: String },
    #[error("{id} was given up")]
    Cancelled { id: String },
    #[error("processes of {id} are alive {} s after SIGKILL", after.as_secs())]
    StillAlive { id: String, after: Duration },
}

impl RuntimeError {
    pub(super) fn answered(step: Step, id: &str, status: &Status) -> Self {
        let (id, message) = (id.to_owned(), one_line(status.message()));
        match refusal(&message) {
            Some(message) => Self::Refused { step, id, message },
            None => Self::Call {
                step,
                id,
                source: Answer {
                    code: status.code(),
                    message: cut(message),
                },
            },
        }
    }

    fn code(&self) -> Option<Code> {
        if let Self::Call { source, .. } = self {
            Some(source.code)
        } else {
            None
        }
    }

    pub(super) fn is_not_found(&self) -> bool {
        self.code() == Some(Code::NotFound)
    }

    pub(crate) fn is_already_there(&self) -> bool {
        self.code() == Some(Code::AlreadyExists)
    }

    /// A shim that was on its way out took the call: the task's last container had just been removed. A new one
    /// starts with the next call.
    pub(super) fn is_shim_leaving(&self) -> bool {
        let Self::Call {
            step: Step::Create,
            source,
            ..
        } = self
        else {
            return false;
        };
        [
            "ttrpc: closed",
            "connection refused",
            "connection reset",
            "broken pipe",
            "EOF",
        ]
        .iter()
        .any(|sign| source.message.contains(sign))
    }

    /// Tasks.Start was called, and this does not tell whether it was done.
    pub(super) fn leaves_start_open(&self) -> bool {
        match self {
            Self::Deadline {
                step: Step::Start, ..
            } => true,
            Self::Call {
                step: Step::Start,
                source,
                ..
            } => !matches!(
                source.code,
                Code::NotFound | Code::InvalidArgument | Code::FailedPrecondition | Code::Unimplemented
            ),
            _ => false,
        }
    }

    /// The OCI runtime would not do it, and would not do it next time either.
    pub(crate) fn is_refused_for_good(&self) -> bool {
        matches!(self, Self::Refused { message, .. } if !passing(message))
    }

    /// The layers that its snapshot is to lie on are no longer on this host. Nothing was made.
    pub(crate) fn is_image_gone(&self) -> bool {
        matches!(self, Self::Call { step: Step::Prepare, source, .. } if source.code == Code::NotFound)
    }

    /// The name ECS gives to failures of this kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Spec { .. }
            | Self::Log { .. }
            | Self::File { .. }
            | Self::Devices { .. }
            | Self::Volumes(_)
            | Self::AppArmor { .. }
            | Self::Seccomp { .. }
            | Self::NoRuntime { .. }
            | Self::HolderEnded { .. }
            | Self::CannotShare { .. }
            | Self::NoNetwork { .. } => "CannotCreateContainerError",
            // Docker finds these when it starts a container.
            Self::User { .. }
            | Self::Device { .. }
            | Self::Gpus { .. }
            | Self::Quota { .. }
            | Self::Accounts { .. }
            | Self::OpaqueSnapshot { .. }
            | Self::NoLogger { .. } => "CannotStartContainerError",
            Self::Silent { .. } => "CannotInspectContainerError",
            Self::Cancelled { .. } => "Cancelled",
            Self::StillAlive { .. } => "CannotStopContainerError",
            Self::Call { step, .. } | Self::Refused { step, .. } | Self::Deadline { step, .. } => {
                match step {
                    Step::Prepare | Step::Record => "CannotCreateContainerError",
                    Step::Create | Step::Start => "CannotStartContainerError",
                    Step::Kill | Step::Wait => "CannotStopContainerError",
                    Step::Delete | Step::DeleteRecord | Step::RemoveSnapshot => "CannotRemoveContainerError",
                    Step::Version | Step::Exec | Step::Inspect | Step::List | Step::Watch => {
                        "CannotInspectContainerError"
                    }
                }
            }
        }
    }

    /// Trying the same again may help. Exhaustive on purpose: a new variant must choose.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Spec { .. }
            | Self::Log { .. }
            | Self::User { .. }
            | Self::OpaqueSnapshot { .. }
            | Self::AppArmor { .. }
            | Self::Seccomp { .. }
            | Self::Cancelled { .. } => false,
            Self::Accounts { .. } | Self::File { .. } | Self::Devices { .. } | Self::Deadline { .. } => true,
            Self::NoLogger { .. } | Self::Silent { .. } | Self::StillAlive { .. } | Self::Quota { .. } => {
                true
            }
            Self::Volumes(error) => error.retryable(),
            Self::NoNetwork { .. } | Self::NoRuntime { .. } | Self::Device { .. } | Self::Gpus { .. } => {
                false
            }
            Self::HolderEnded { .. } | Self::CannotShare { .. } => false,
            Self::Refused { message, .. } => passing(message),
            // The image's layers are gone, or the request is wrong: the same request meets the same answer.
            Self::Call { source, .. } => !matches!(
                source.code,
                Code::NotFound | Code::InvalidArgument | Code::Unimplemented | Code::AlreadyExists
            ),
        }
    }

    /// containerd was there, and its runtime answered that it cannot.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Call { source, .. }
            if matches!(source.code, Code::Unknown | Code::PermissionDenied | Code::FailedPrecondition))
    }

    /// For the core: the kind, and the whole chain of causes in one line.
    pub fn failure(&self) -> Failure {
        let mut message = self.to_string();
        let mut source = self.source();
        while let Some(cause) = source {
            message.push_str(": ");
            message.push_str(&cause.to_string());
            source = cause.source();
        }
        Failure {
            kind: self.kind().to_owned(),
            message: cut(message),
            retryable: self.retryable(),
        }
    }
}

/// The host ran short of something, rather than the container being wrong.
fn passing(message: &str) -> bool {
    const SIGNS: [&str; 6] = [
        "resource temporarily unavailable",
        "device or resource busy",
        "cannot allocate memory",
        "too many open files",
        "no space left on device",
        "interrupted system call",
    ];
    SIGNS.iter().any(|sign| message.contains(sign))
}

/// What the OCI runtime said, without the names of those who passed it on; `None` where it did not speak.
fn refusal(message: &str) -> Option<String> {
    const MARKS: [&str; 3] = [
        "OCI runtime create failed: ",
        "OCI runtime start failed: ",
        "OCI runtime exec failed: ",
    ];
    // Said by runc, crun and containerd in front of the cause.
    const PREFIXES: [&str; 8] = [
        "runc create failed: ",
        "runc exec failed: ",
        "exec failed: ",
        "runc start failed: ",
        "crun create failed: ",
        "crun: ",
        "unable to start container process: ",
        "error during container init: ",
    ];
    let mut rest = MARKS
        .iter()
        .find_map(|mark| message.split_once(mark).map(|(_, rest)| rest))?;
    while let Some(shorter) = PREFIXES.iter().find_map(|prefix| rest.strip_prefix(prefix)) {
        rest = shorter;
    }
    Some(cut(rest.strip_suffix(": unknown").unwrap_or(rest).to_owned()))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn cut(mut text: String) -> String {
    if text.len() > MESSAGE_BYTES_MAX {
        let end = (0..=MESSAGE_BYTES_MAX)
            .rev()
            .find(|i| text.is_char_boundary(*i))
            .unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(step: Step, code: Code, message: &str) -> Failure {
        RuntimeError::answered(step, "c-1", &Status::new(code, message)).failure()
    }

    #[test]
    fn the_runtimes_own_words_are_what_is_reported() {
        let runc = "failed to create shim task: OCI runtime create failed: runc create failed: unable to start \
                    container process: exec: \"nope\": executable file not found in $PATH: unknown";
        let failure = of(Step::Create, Code::Unknown, runc);
        assert_eq!(
            failure.message,
            "exec: \"nope\": executable file not found in $PATH"
        );
        assert_eq!(failure.kind, "CannotStartContainerError");
        assert!(!failure.retryable);

        let init = "OCI runtime create failed: runc create failed: unable to start container process: error during \
                    container init:\n  mkdir /x:\tread-only file system: unknown";
        assert_eq!(
            of(Step::Create, Code::Unknown, init).message,
            "mkdir /x: read-only file system"
        );
        let crun =
            "OCI runtime create failed: crun: executable file `nope` not found: No such file: not found";
        assert_eq!(
            of(Step::Create, Code::NotFound, crun).message,
            "executable file `nope` not found: No such file: not found"
        );
        assert!(
            of(
                Step::Create,
                Code::Unknown,
                "OCI runtime create failed: fork: resource temporarily unavailable: unknown"
            )
            .retryable
        );
    }

    #[test]
    fn only_what_was_asked_and_not_answered_leaves_a_start_open() {
        let answered = |step, code, message| RuntimeError::answered(step, "c-1", &Status::new(code, message));
        for open in [
            answered(Step::Start, Code::Unavailable, "transport error"),
            answered(Step::Start, Code::Unknown, "ttrpc: closed"),
            RuntimeError::Deadline {
                step: Step::Start,
                id: "c-1".into(),
                after: Duration::from_secs(60),
            },
        ] {
            assert!(open.leaves_start_open() && open.retryable(), "{open:?}");
        }
        let refused = "OCI runtime start failed: cannot start a stopped process: unknown";
        for settled in [
            answered(Step::Start, Code::Unknown, refused),
            answered(Step::Start, Code::NotFound, "no running task found"),
            answered(Step::Create, Code::Unavailable, "transport error"),
        ] {
            assert!(!settled.leaves_start_open(), "{settled:?}");
        }
    }

    #[test]
    fn other_answers_say_what_was_done_to_what() {
        let failure = of(
            Step::Prepare,
            Code::NotFound,
            "parent snapshot sha256:1 does not exist",
        );
        let want =
            "prepare the snapshot of c-1: containerd: parent snapshot sha256:1 does not exist (NotFound)";
        assert_eq!((failure.message.as_str(), failure.retryable), (want, false));
        let gone = RuntimeError::answered(Step::Prepare, "c-1", &Status::not_found("parent snapshot"));
        assert!(gone.is_image_gone());
        let other = RuntimeError::answered(Step::Create, "c-1", &Status::not_found("cgroup"));
        assert!(!other.is_image_gone());
        assert_eq!(failure.kind, "CannotCreateContainerError");
        assert!(of(Step::Record, Code::Unavailable, "x").retryable);
        assert!(of(Step::Record, Code::Unknown, &"é".repeat(2000)).message.len() < 1024);
    }
}
