//! Owns one container's output from the pipe to the log file. The containerd shim starts it (`binary://`), and the
//! agent starts it again (`resume`) should it die. It never talks to the network, and never keeps the container waiting for a
//! disk that is full, slow or stuck, unless it is told to (`mode blocking`): it drops lines, counts them and says so.
//!
//! Bytes are consumed from the container's pipe only after the file has them: they are looked at through tee(2). So
//! SIGKILL at any moment loses nothing and repeats at most one batch ([`pipe::BATCH_BYTES_MAX`]). Only while the disk
//! does not keep up, and nobody is to wait for it, are lines in this process's memory alone ([`buffer`]).

mod args;
mod buffer;
mod clock;
mod json;
mod pipe;
mod register;
mod rotate;
mod sink;
mod sys;
mod writer;

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::ExitCode,
    time::Duration,
};

use args::Args;
use json::Stream;
use pipe::{Progress, Source};
use sink::Sink;

/// Where the shim puts the container's stdout, its stderr, and the pipe whose closing says "ready".
const SHIM_FDS: [i32; 3] = [3, 4, 5];
/// Output is read by root and by a collector's group: nobody else's business.
const UMASK: u32 = 0o027;
/// Wakes us while an unfinished line waits, on kernels that do not report every write to an edge-triggered poll, and
/// while a count of dropped lines waits for room.
const RECHECK: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    sys::ignore_stop_signals();
    sys::set_umask(UMASK);
    let args = match Args::parse(std::env::args_os().skip(1), std::env::var_os("CONTAINER_ID")) {
        Ok(args) => args,
        // The ready pipe closes with us; that nobody registered tells the agent.
        Err(error) => {
            eprintln!("berth-logger: {error}");
            return ExitCode::from(2);
        }
    };
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berth-logger: {}: {error}", args.id);
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> io::Result<()> {
    let [out, err] = output_fds(args)?;
    let mut sink = Sink::open(args)?;
    // Kept open to the end: its closing tells the agent that this logger is gone.
    let link = register::register(args, [out.as_fd(), err.as_fd()]);
    let mut sources = [
        Source::new(out, Stream::Stdout)?,
        Source::new(err, Stream::Stderr)?,
    ];
    if args.resume.is_none() {
        drop(sys::take_fd(SHIM_FDS[2]));
    }
    drain(&mut sources, &mut sink, link)?;
    sink.finish();
    Ok(())
}

/// The read ends of the container's stdout and stderr. A resumed logger moves its own to where the shim's would be, so
/// that they are found in one place.
fn output_fds(args: &Args) -> io::Result<[OwnedFd; 2]> {
    if let Some(given) = args.resume {
        sys::move_fds(given, [SHIM_FDS[0], SHIM_FDS[1]])?;
    }
    let take = |fd| sys::take_fd(fd).ok_or_else(|| io::Error::other(format!("descriptor {fd} is not open")));
    Ok([take(SHIM_FDS[0])?, take(SHIM_FDS[1])?])
}

/// Copies until both streams have ended.
fn drain(sources: &mut [Source; 2], sink: &mut Sink, mut link: Option<UnixStream>) -> io::Result<()> {
    let null = File::options().write(true).open("/dev/null")?;
    let epoll = sys::Epoll::new()?;
    for source in sources.iter() {
        epoll.add_edge_triggered(source.fd())?;
    }
    loop {
        let mut idle = true;
        for source in sources.iter_mut() {
            // One batch each in turn: a chatty stdout must not delay stderr.
            idle &= source.pump(sink, &null)? != Progress::Again;
        }
        if let (dropped @ 1.., Some(link)) = (sink.take_untold(), &mut link) {
            register::tell_dropped(link, dropped);
        }
        if sources.iter().all(Source::ended) {
            break;
        }
        if !idle {
            continue;
        }
        let recheck = sources.iter().any(Source::unfinished) || sink.owes_report();
        epoll.wait(recheck.then_some(RECHECK))?;
        if sink.owes_report() {
            sink.report();
        }
    }
    Ok(())
}
