//! Owns which containers begin with berth-init, and what it is told. Never changes what it then runs.

use super::{Mount, OciError, OciSpec};

/// Where it is in a container. Not below `/dev`, which may be the host's.
pub const INIT: &str = "/sbin/berth-init";

/// What it does before it runs the container's own program; nothing: it is not needed.
fn options(spec: &OciSpec) -> Vec<&'static str> {
    // A terminal stays open by itself.
    let open_stdin = (spec.interactive && !spec.terminal).then_some("--open-stdin");
    let init = spec.linux.init_process.then_some("--init");
    open_stdin.into_iter().chain(init).collect()
}

/// The container's own program and arguments, behind berth-init where it is needed.
pub(super) fn arguments(spec: &OciSpec) -> Vec<String> {
    let options = options(spec);
    if options.is_empty() {
        return spec.args.clone();
    }
    let before = [INIT].into_iter().chain(options).chain(["--"]);
    before
        .map(str::to_owned)
        .chain(spec.args.iter().cloned())
        .collect()
}

/// The program itself, where it is needed.
pub(super) fn mount(spec: &OciSpec) -> Result<Option<Mount>, OciError> {
    match &spec.init {
        _ if options(spec).is_empty() => Ok(None),
        Some(path) => Ok(Some(Mount::read_only(path, INIT))),
        None => Err(OciError::InitMissing),
    }
}
