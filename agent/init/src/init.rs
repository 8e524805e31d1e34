//! Owns the first process of a container: it starts the container's own program, passes signals on to it, reaps it and all
//! that is orphaned meanwhile, and ends as it ended. Never sends a signal of its own.

use std::{ffi::CString, io};

use crate::{
    refused,
    sys::{self, Child, Ended},
};

/// The program's exit code; 128 and the number of the signal that ended it.
pub(crate) fn run(command: &[CString]) -> io::Result<u8> {
    sys::adopt_orphans();
    let signals = sys::block_signals()?;
    let child = match sys::fork()? {
        Child::Itself => {
            // A group of its own, in front of the terminal if there is one: what is typed there is the program's.
            sys::lead_foreground_group();
            signals.restore();
            std::process::exit(refused(command, &sys::execute(command)).into());
        }
        Child::Of(pid) => pid,
    };
    loop {
        let signal = signals.next()?;
        if signal != sys::CHILD_ENDED {
            // One that has ended needs no signal; that it did is told by another.
            sys::send(child, signal);
            continue;
        }
        if let Some(code) = reap(child)? {
            return Ok(code);
        }
    }
}

/// Takes all that have ended; the exit code once `child` is among them.
fn reap(child: i32) -> io::Result<Option<u8>> {
    let mut code = None;
    // One signal may stand for several.
    while let Some((pid, ended)) = sys::reap_one()? {
        if pid == child {
            code = Some(exit_code(ended));
        }
    }
    Ok(code)
}

/// As shells and containerd have it.
fn exit_code(ended: Ended) -> u8 {
    match ended {
        Ended::Exited(code) => u8::try_from(code & 0xff).unwrap_or(u8::MAX),
        Ended::Killed(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_is_passed_on_and_a_signal_is_128_more() {
        for (ended, code) in [
            (Ended::Exited(0), 0),
            (Ended::Exited(255), 255),
            (Ended::Killed(9), 137),
            (Ended::Killed(15), 143),
            (Ended::Killed(64), 192),
        ] {
            assert_eq!(exit_code(ended), code, "{ended:?}");
        }
    }
}
