//! Owns the threads on which everything that touches a namespace or netlink is done, a bounded number at a time. Never a
//! worker of the runtime: a netlink request is carried out inside `sendmsg`, behind one lock for the whole kernel, and
//! changing a namespace changes the thread. Never a fork either.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, oneshot},
    time::{Instant, timeout},
};

use super::error::NetworkError;

/// Threads at a time. They all wait for the kernel's one RTNL lock: more gain nothing.
const THREADS_MAX: usize = 8;
/// Stack of a thread, bytes: it makes a handful of system calls.
const STACK_BYTES: usize = 256 * 1024;
/// Waiting for one of the threads, behind others.
const TURN_DEADLINE: Duration = Duration::from_secs(30);
/// One operation: normally 1 to 3 ms, tens of them when the kernel is busy removing namespaces.
const WORK_DEADLINE: Duration = Duration::from_secs(10);
/// One that waits for a network outside: twice for a carrier, and for an answer.
const PATIENT_DEADLINE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Threads {
    turns: Arc<Semaphore>,
    working: Working,
    turn_deadline: Duration,
    work_deadline: Duration,
}

impl Default for Threads {
    fn default() -> Self {
        Self {
            turns: Arc::new(Semaphore::new(THREADS_MAX)),
            working: Working::default(),
            turn_deadline: TURN_DEADLINE,
            work_deadline: WORK_DEADLINE,
        }
    }
}

impl Threads {
    /// For what waits for a network outside: beside the others, which it never keeps waiting.
    pub(super) fn patient() -> Self {
        Self {
            work_deadline: PATIENT_DEADLINE,
            ..Self::default()
        }
    }

    /// Does `work` on a thread of its own, and waits for it. `held` (a lock) is released when the work is over and not
    /// before, even if nobody waits any more: a cancelled caller never lets a second operation in beside the first.
    pub(super) async fn run<T, H>(
        &self,
        step: &'static str,
        subject: &str,
        held: H,
        work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
    ) -> Result<(T, H), NetworkError>
    where
        T: Send + 'static,
        H: Send + 'static,
    {
        let turn = timeout(self.turn_deadline, self.turns.clone().acquire_owned());
        // The semaphore is never closed.
        let turn = turn.await.map_err(|_| NetworkError::NoTurn {
            step,
            subject: subject.to_owned(),
            waited: self.turn_deadline,
            stuck: self.stuck().len(),
        })?;
        let turn = turn.ok();
        let (sender, receiver) = oneshot::channel();
        let at_work = self.working.begin(format!("{step} {subject}"));
        std::thread::Builder::new()
            .name("netns".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let result = work().map(|value| (value, held));
                drop(at_work);
                drop(turn);
                // A failed send means that the caller gave up; what was made is for `detach`.
                let _ = sender.send(result);
            })
            .map_err(|source| NetworkError::Thread { step, source })?;
        let result = timeout(self.work_deadline, receiver).await;
        let result = result.map_err(|_| NetworkError::Deadline {
            step,
            subject: subject.to_owned(),
            deadline: self.work_deadline,
        })?;
        result.unwrap_or(Err(NetworkError::ThreadDied { step }))
    }

    /// What should have ended long ago and has not, the oldest first: nothing ends a thread that is inside of the kernel.
    pub(super) fn stuck(&self) -> Vec<Stuck> {
        let now = Instant::now();
        let works = self.working.lock();
        let all = works.begun.values().map(|(what, begun)| Stuck {
            what: what.clone(),
            since: now.saturating_duration_since(*begun),
        });
        all.filter(|one| one.since > self.work_deadline).collect()
    }

    /// For an operator, while there are such. Said again in the same words, that it be one thing.
    pub(super) fn impairment(&self) -> Option<String> {
        let stuck = self.stuck();
        let oldest = stuck.first()?;
        let all = match stuck.len() {
            THREADS_MAX => "and no other can begin".to_owned(),
            count => format!("{count} of {THREADS_MAX} that can be under way"),
        };
        Some(format!(
            "the kernel does not answer to {}, {all}: see which lock it waits for with `cat /proc/AGENT/task/*/stack`; \
             where that does not end, reboot the host",
            oldest.what
        ))
    }
}

/// An operation that is past its deadline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stuck {
    pub(super) what: String,
    pub(super) since: Duration,
}

/// What is under way, at most [`THREADS_MAX`].
#[derive(Clone, Debug, Default)]
struct Working(Arc<Mutex<Works>>);

#[derive(Debug, Default)]
struct Works {
    next: u64,
    /// By their order.
    begun: BTreeMap<u64, (String, Instant)>,
}

impl Working {
    fn lock(&self) -> MutexGuard<'_, Works> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, what: String) -> AtWork {
        let mut works = self.lock();
        let number = works.next;
        works.next += 1;
        works.begun.insert(number, (what, Instant::now()));
        AtWork {
            working: self.clone(),
            number,
        }
    }
}

/// It is under way as long as this lives.
struct AtWork {
    working: Working,
    number: u64,
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.working.lock().begun.remove(&self.number);
    }
}

/// Drives netlink sockets on the calling thread until `work` is done.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T, NetworkError>>) -> Result<T, NetworkError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(|source| NetworkError::Thread {
            step: "drive netlink sockets",
            source,
        })?
        .block_on(work)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures_util::future::join_all;

    use super::{super::error::Retry, *};

    /// Work that ends when its sender is dropped, as a system call that the kernel does not come back from.
    fn hang() -> (
        mpsc::Sender<()>,
        impl FnOnce() -> Result<(), NetworkError> + Send + 'static,
    ) {
        let (end, wait) = mpsc::channel::<()>();
        let work = move || {
            let _ = wait.recv();
            Ok(())
        };
        (end, work)
    }

    /// Until the threads that were let go are over.
    fn until_none_works(threads: &Threads) {
        while threads.turns.available_permits() < THREADS_MAX {
            std::thread::yield_now();
        }
    }

    /// Impatient with what hangs; nothing else is done meanwhile.
    fn impatient() -> Threads {
        Threads {
            turn_deadline: Duration::from_millis(30),
            work_deadline: Duration::from_millis(30),
            ..Threads::default()
        }
    }

    fn as_usual(threads: Threads) -> Threads {
        Threads {
            turns: threads.turns,
            working: threads.working,
            ..Threads::default()
        }
    }

    #[tokio::test]
    async fn a_thread_that_hangs_is_said_and_keeps_its_lock() {
        let threads = impatient();
        let (end, work) = hang();
        let lock = Arc::new(());
        let hung = threads.run("attach", "one", Arc::clone(&lock), work).await;
        assert!(
            matches!(&hung, Err(NetworkError::Deadline { step: "attach", subject, .. }) if subject == "one"),
            "{hung:?}"
        );
        assert_eq!(Arc::strong_count(&lock), 2, "held while it works");
        let stuck: Vec<_> = threads.stuck().into_iter().map(|one| one.what).collect();
        assert_eq!(stuck, ["attach one"]);
        let said = threads.impairment().unwrap();
        assert!(said.contains("to attach one, 1 of 8"), "{said}");

        drop(end);
        until_none_works(&threads);
        assert_eq!(threads.stuck(), []);
        assert_eq!(threads.impairment(), None);
    }

    #[tokio::test]
    async fn when_all_hang_nothing_waits_for_ever_and_all_goes_on_once_they_end() {
        let threads = impatient();
        let (ends, works): (Vec<_>, Vec<_>) = (0..THREADS_MAX).map(|_| hang()).unzip();
        let hung = works
            .into_iter()
            .map(|work| threads.run("attach", "all", (), work));
        for one in join_all(hung).await {
            assert!(matches!(one, Err(NetworkError::Deadline { .. })), "{one:?}");
        }
        let error = threads.run("detach", "two", (), || Ok(())).await.unwrap_err();
        let said = error.to_string();
        assert!(
            said.starts_with("no turn within 30ms to detach two") && said.contains("8 operations"),
            "{said}"
        );
        assert_eq!((error.retry(), error.is_of_uplink()), (Retry::Backoff, true));
        let said = threads.impairment().unwrap();
        assert!(said.contains("to attach all, and no other can begin"), "{said}");

        drop(ends);
        until_none_works(&threads);
        let threads = as_usual(threads);
        let (done, ()) = threads.run("detach", "two", (), || Ok(7)).await.unwrap();
        assert_eq!((done, threads.impairment()), (7, None));
    }

    #[tokio::test]
    async fn a_thread_that_panics_is_over() {
        let threads = Threads::default();
        let ended = threads.run("attach", "one", (), || -> Result<(), _> { panic!("on purpose") });
        let ended = ended.await;
        assert!(
            matches!(ended, Err(NetworkError::ThreadDied { step: "attach" })),
            "{ended:?}"
        );
        until_none_works(&threads);
        assert!(threads.working.lock().begun.is_empty());
    }
}
