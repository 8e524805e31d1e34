//! Owns what a container needs beside its own program, and only a process in it can give: a standard input that never
//! ends (`--open-stdin`), and a first process that passes signals on and reaps (`--init`); and what a task's
//! containers share needs, where nothing else runs: a process that its namespaces are held by (`--hold`). It is mounted into the container, read-only, and its arguments end with what is to be run.
//!
//! It never talks to the agent, reads no file, and takes nothing from its environment but the search path.

mod args;
mod init;
mod sys;

use std::{
    ffi::{CString, OsString},
    io,
    os::unix::ffi::OsStringExt,
    process::ExitCode,
};

use args::Args;

/// What a shell says of a program that is not there, and of one that cannot be executed.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;
/// Wrong arguments, or a kernel that refuses: not the program's fault.
const FAILED: u8 = 125;

/// Does what the arguments say; comes back only with an exit code.
pub fn main() -> ExitCode {
    let args = match Args::parse(std::env::args_os().skip(1)) {
        Ok(args) => args,
        Err(error) => {
            eprintln!("berth-init: {error}");
            return ExitCode::from(FAILED);
        }
    };
    match run(args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("berth-init: {error}");
            ExitCode::from(FAILED)
        }
    }
}

fn run(args: Args) -> io::Result<u8> {
    if args.hold {
        sys::hold();
    }
    if args.open_stdin {
        sys::open_stdin()?;
    }
    sys::default_sigpipe();
    let command = command(args.command)?;
    if args.init {
        return init::run(&command);
    }
    Ok(refused(&command, &sys::execute(&command)))
}

/// As execvp(3) takes it.
fn command(arguments: Vec<OsString>) -> io::Result<Vec<CString>> {
    let text = |argument: OsString| CString::new(argument.into_vec()).map_err(io::Error::other);
    arguments.into_iter().map(text).collect()
}

/// Says why the program was not executed; the exit code for it.
fn refused(command: &[CString], error: &io::Error) -> u8 {
    let program = command.first().map(|program| program.to_string_lossy());
    eprintln!(
        "berth-init: cannot execute {}: {error}",
        program.unwrap_or_default()
    );
    match error.kind() {
        io::ErrorKind::NotFound => NOT_FOUND,
        _ => NOT_EXECUTABLE,
    }
}
