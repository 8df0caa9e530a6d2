use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use super::*;

/// A reply that tells the test what was answered.
struct Answer(mpsc::Sender<Result<u32, i32>>);

impl Refuse for Answer {
    fn refuse(self, errno: Errno) {
        self.0.send(Err(errno.into())).unwrap();
    }
}

fn accept(reply: Answer, value: u32) {
    reply.0.send(Ok(value)).unwrap();
}

fn answer() -> (Answer, mpsc::Receiver<Result<u32, i32>>) {
    let (sender, receiver) = mpsc::channel();
    (Answer(sender), receiver)
}

fn request(needs_permit: bool) -> Request {
    Request { op: "test", nodeid: 1, pid: 0, wakes: Wakes::Ending, needs_permit }
}

const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn what_is_known_here_is_answered_on_the_calling_thread() {
    let server = Server::new(Handle::current(), Arc::default());
    let (reply, answered) = answer();
    let caller = std::thread::current().id();
    let operation = async move {
        assert_eq!(std::thread::current().id(), caller);
        Ok(7)
    };
    server.answer(request(true), reply, operation, accept);
    assert_eq!(answered.try_recv(), Ok(Ok(7)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_must_wait_does_not_hold_the_calling_thread() {
    let server = Server::new(Handle::current(), Arc::default());
    let (reply, answered) = answer();
    let (go, gone) = tokio::sync::oneshot::channel();
    let operation = async move { Ok(gone.await.unwrap()) };
    server.answer(request(true), reply, operation, accept);
    assert!(answered.try_recv().is_err());
    go.send(9).unwrap();
    server.drain().await;
    assert_eq!(answered.try_recv(), Ok(Ok(9)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_free_permit_only_operations_that_need_none_proceed() {
    let server = Server::new(Handle::current(), Arc::default());
    let all = server.permits.clone().acquire_many_owned(IN_FLIGHT_MAX as u32).await.unwrap();
    let (reply, waiting) = answer();
    server.answer(request(true), reply, async { Ok(1) }, accept);
    let (reply, flushed) = answer();
    server.answer(request(false), reply, async { Ok(2) }, accept);
    assert_eq!(flushed.recv_timeout(SOON), Ok(Ok(2)));
    assert!(waiting.try_recv().is_err());
    drop(all);
    server.drain().await;
    assert_eq!(waiting.try_recv(), Ok(Ok(1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_caller_is_sent_away_and_a_late_success_is_taken_back() {
    let server = Server::new(Handle::current(), Arc::default());
    let mut child = std::process::Command::new("/bin/sh")
        .args(["-c", "trap : TERM; kill -STOP $$"])
        .spawn()
        .unwrap();
    let (reply, answered) = answer();
    let (go, gone) = tokio::sync::oneshot::channel();
    let undone = Arc::new(AtomicBool::new(false));
    let mark = undone.clone();
    let waiting = Request { pid: child.id(), ..request(true) };
    let undo = move |value| {
        mark.store(value == 5, Ordering::SeqCst);
        std::future::ready(())
    };
    server.serve(waiting, reply, async move { Ok(gone.await.unwrap()) }, (accept, undo));
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    nix::sys::wait::waitpid(pid, Some(nix::sys::wait::WaitPidFlag::WUNTRACED)).unwrap();
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(answered.recv_timeout(SOON), Ok(Err(libc::EINTR)));
    go.send(5).unwrap();
    server.drain().await;
    assert!(undone.load(Ordering::SeqCst));
    child.kill().unwrap();
    child.wait().unwrap();
}
