//! Whether the program that waits for us wants to be woken.
//!
//! fuser answers INTERRUPT with ENOSYS, so a signal to a waiting program does not reach us. We
//! look instead: a request that takes long checks its caller's pending signals.
//!
//! A local file system answers no call with EINTR, and programs rely on it: a database takes an
//! interrupted fsync for a broken disk, timers and child exits arrive all the time. The one
//! exception is a wait for a lock, which any signal ends that is not ignored. Else only signals
//! that ask a program to end are answered, and those end a change of names or attributes, or an
//! fsync, only if they kill: after EINTR a program may not know whether the change was made, and of
//! a dying program nobody asks.

use std::time::Duration;

use crate::sys::ProcessStatus;

/// How long a request may take before its caller is looked at, and how often from then on.
///
/// Why 100 ms: nobody notices a key press that takes effect that late, and ten looks a second at
/// each waiting program cost nothing.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Which signals end the wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wakes {
    Ending,
    Fatal,
    /// Every signal that has an effect: for waits that local file systems interrupt too.
    Any,
}

impl Wakes {
    fn by(self, status: &ProcessStatus) -> bool {
        match self {
            Wakes::Ending => status.is_asked_to_end(),
            Wakes::Fatal => status.is_killed(),
            Wakes::Any => status.is_signalled(),
        }
    }
}

/// Waits until a signal is pending that ends the wait of thread `pid`; for ever if its state
/// cannot be seen (pid 0: the kernel itself asks). Cancel-safe.
pub(super) async fn interrupted(pid: u32, wakes: Wakes) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        match ProcessStatus::of(pid) {
            Some(status) if wakes.by(&status) => return,
            Some(_) => {}
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};

    use nix::sys::signal::{Signal, kill};
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    use nix::unistd::Pid;

    use super::*;

    /// A stopped child: signals sent to it stay pending.
    struct Stopped(Child);

    impl Stopped {
        fn running(command: &str) -> Stopped {
            let child = Stopped(
                Command::new("/bin/sh")
                    .args(["-c", command])
                    .stdin(Stdio::null())
                    .process_group(0)
                    .spawn()
                    .unwrap(),
            );
            let state = waitpid(child.pid(), Some(WaitPidFlag::WUNTRACED)).unwrap();
            assert!(matches!(state, WaitStatus::Stopped(..)), "{state:?}");
            child
        }

        fn pid(&self) -> Pid {
            Pid::from_raw(self.0.id().try_into().unwrap())
        }
    }

    impl Drop for Stopped {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// Whether the wait ends while its timer, which here takes no time, rings many times.
    async fn is_woken(child: &Stopped, wakes: Wakes) -> bool {
        let wait = interrupted(child.0.id(), wakes);
        tokio::time::timeout(LOOK_EVERY * 100, wait).await.is_ok()
    }

    fn signal(child: &Stopped, signal: Signal) {
        kill(child.pid(), signal).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_program_is_woken_by_a_pending_signal_and_not_before() {
        let child = Stopped::running("kill -STOP $$");
        assert!(!is_woken(&child, Wakes::Ending).await);
        assert!(!is_woken(&child, Wakes::Any).await);
        signal(&child, Signal::SIGUSR1);
        assert!(is_woken(&child, Wakes::Ending).await);
        assert!(is_woken(&child, Wakes::Fatal).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_handled_signal_ends_a_question_if_it_asks_to_end_and_never_a_change() {
        let child = Stopped::running("trap : USR1 TERM; kill -STOP $$");
        signal(&child, Signal::SIGUSR1);
        assert!(!is_woken(&child, Wakes::Ending).await);
        assert!(is_woken(&child, Wakes::Any).await);
        signal(&child, Signal::SIGTERM);
        assert!(is_woken(&child, Wakes::Ending).await);
        assert!(!is_woken(&child, Wakes::Fatal).await);
    }
}
