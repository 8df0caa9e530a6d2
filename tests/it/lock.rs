use dfs_mount::vfs::LockAsk;
use dfs_proto::lock::LockOwner;
use dfs_proto::range::{Range, RangeKind};
use tokio_util::sync::CancellationToken;

use super::support::{Cell, Client};
use super::*;

/// A program of one client: its process's locks, and a file it has open.
struct Program<'a> {
    vfs: &'a Vfs,
    owner: LockOwner,
    handle: u64,
}

impl<'a> Program<'a> {
    async fn open(client: &'a Client, number: u64, name: &str, how: OpenHow) -> Program<'a> {
        let handle = open(&client.vfs, name, how).await.handle;
        Program { vfs: &client.vfs, owner: LockOwner(number), handle }
    }

    fn ask(&self, kind: RangeKind, range: Range, waits: bool) -> LockAsk {
        LockAsk { owner: self.owner, pid: 1, range, kind, waits }
    }

    async fn take(&self, ask: LockAsk) -> Result<(), Error> {
        self.vfs.lock_range(&root(), self.handle, ask, &CancellationToken::new()).await
    }

    /// Without waiting.
    async fn try_lock(&self, kind: RangeKind, range: Range) -> bool {
        match self.take(self.ask(kind, range, false)).await {
            Ok(()) => true,
            Err(Error::Fs(FsError::LockBusy { .. })) => false,
            Err(error) => panic!("{error}"),
        }
    }

    async fn lock(&self) {
        self.take(self.ask(RangeKind::Exclusive, Range::WHOLE, true)).await.unwrap();
    }

    async fn unlock(&self) {
        self.vfs.unlock_range(self.handle, self.owner, Range::WHOLE).await.unwrap();
    }

    /// As the kernel does: at once, or with the lock if the file is shared.
    async fn write(&self, to: WriteTo, bytes: &[u8]) -> Result<(), Error> {
        let change = || self.vfs.write(self.handle, to, bytes, false);
        match change() {
            Err(Error::Shared) => self.vfs.with_lock(&root(), self.handle, true, change).await,
            result => result,
        }
    }

    async fn add_one(&self) {
        self.lock().await;
        let number: u64 = match &content(self.vfs, self.handle)[..] {
            [] => 0,
            digits => String::from_utf8_lossy(digits).parse().unwrap(),
        };
        self.write(WriteTo::Offset(0), (number + 1).to_string().as_bytes()).await.unwrap();
        self.unlock().await;
    }

    async fn close(self) {
        self.vfs.flush(self.handle).await.unwrap();
        self.vfs.drop_owner(self.handle, self.owner).await.unwrap();
        self.vfs.release(self.handle).await.unwrap();
    }
}

const EXCLUSIVE: RangeKind = RangeKind::Exclusive;
const SHARED: RangeKind = RangeKind::Shared;

/// L1: "A range that one program has locked another gets ..."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_of_one_client_and_of_others_exclude_each_other_by_ranges() {
    let cell = Cell::start().await;
    let (a, b) = (cell.client(true).await, cell.client(true).await);
    put(&a.vfs, "file", b"0123456789").await;
    let first = Program::open(&a, 1, "file", READ).await;
    let second = Program::open(&a, 2, "file", READ).await;
    let other = Program::open(&b, 1, "file", READ).await;
    let (front, back) = (Range { start: 0, end: 5 }, Range { start: 5, end: 10 });
    assert!(first.try_lock(EXCLUSIVE, front).await && other.try_lock(EXCLUSIVE, back).await);
    assert!(!second.try_lock(SHARED, front).await && !second.try_lock(SHARED, back).await);
    assert!(first.try_lock(SHARED, front).await, "a downgrade of its own");
    assert!(second.try_lock(SHARED, front).await && other.try_lock(SHARED, front).await);
    assert!(!first.try_lock(EXCLUSIVE, front).await, "others have it too");
    let found = second.vfs.find_lock(&root(), second.handle, second.ask(SHARED, back, false)).await;
    let found = found.unwrap().unwrap();
    assert_eq!((found.range, found.kind, found.pid), (back, EXCLUSIVE, 0), "of another machine");
    first.close().await;
    second.close().await;
    assert!(other.try_lock(EXCLUSIVE, Range::WHOLE).await);
    other.close().await;
}

/// L2: "Locks go back when ... the process closes the file, or its last descriptor is closed."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_go_back_with_the_close_of_their_process_or_file() {
    let cell = Cell::start().await;
    let (a, b) = (cell.client(true).await, cell.client(true).await);
    put(&a.vfs, "file", b"x").await;
    let other = Program::open(&b, 1, "file", READ).await;
    let process = Program::open(&a, 1, "file", READ).await;
    let again = Program::open(&a, 1, "file", READ).await;
    assert!(process.try_lock(EXCLUSIVE, Range::WHOLE).await);
    // fcntl(2): whichever of its descriptors a process closes.
    again.close().await;
    assert!(other.try_lock(EXCLUSIVE, Range::WHOLE).await);
    other.unlock().await;
    assert!(process.try_lock(EXCLUSIVE, Range::WHOLE).await);
    // flock(2): what is locked through a file goes with it, unsaid.
    process.vfs.release(process.handle).await.unwrap();
    assert!(other.try_lock(EXCLUSIVE, Range::WHOLE).await);
    other.close().await;
}

/// L3: "Who waits is served in the order of asking ..."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_gets_it_when_it_goes_back_and_gives_up_when_told_to() {
    let cell = Cell::start().await;
    let (a, b) = (cell.client(true).await, cell.client(true).await);
    put(&a.vfs, "file", b"x").await;
    let holder = Program::open(&a, 1, "file", READ).await;
    let waiter = Program::open(&b, 1, "file", READ).await;
    holder.lock().await;
    let ((), ()) = tokio::join!(waiter.lock(), async {
        while b.rpc_count("directory.lock_range") == 0 {
            tokio::task::yield_now().await;
        }
        holder.unlock().await;
    });
    assert!(!holder.try_lock(SHARED, Range::WHOLE).await);

    let stop = CancellationToken::new();
    let ask = holder.ask(EXCLUSIVE, Range::WHOLE, true);
    let asked = a.rpc_count("directory.lock_range");
    let caller = root();
    let waiting = holder.vfs.lock_range(&caller, holder.handle, ask, &stop);
    let (ended, ()) = tokio::join!(waiting, async {
        while a.rpc_count("directory.lock_range") == asked {
            tokio::task::yield_now().await;
        }
        stop.cancel();
    });
    assert!(matches!(ended, Err(Error::Interrupted)), "{ended:?}");
    waiter.unlock().await;
    let third = Program::open(&b, 3, "file", READ).await;
    assert!(third.try_lock(EXCLUSIVE, Range::WHOLE).await, "nobody stands in the queue");
}

/// L3: "... and after `lock_timeout` gets EAGAIN"
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_clients_that_want_each_others_lock_end_by_the_timeout_with_its_name() {
    let cell = Cell::start().await;
    let (a, b) = (cell.client(true).await, cell.client(true).await);
    put(&a.vfs, "one", b"1").await;
    put(&a.vfs, "two", b"2").await;
    let has_one = Program::open(&a, 1, "one", READ).await;
    let wants_two = Program::open(&a, 1, "two", READ).await;
    let has_two = Program::open(&b, 1, "two", READ).await;
    let wants_one = Program::open(&b, 1, "one", READ).await;
    has_one.lock().await;
    has_two.lock().await;
    let waits = |program: &Program<'_>| program.ask(EXCLUSIVE, Range::WHOLE, true);
    let ends = tokio::join!(wants_two.take(waits(&wants_two)), wants_one.take(waits(&wants_one)));
    let is_late = |end: &Result<(), Error>| match end {
        Err(Error::Fs(FsError::LockTimeout { holder })) => holder.contains("testhost"),
        _ => false,
    };
    assert!(is_late(&ends.0) && is_late(&ends.1), "{ends:?}");
}

/// W5: "... a client that has nothing to commit lets others write too ..."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_open_for_writing_on_two_clients_is_written_on_top_of_the_newest_version() {
    for passthrough in [true, false] {
        let cell = Cell::start().await;
        let (a, b) = (cell.client(passthrough).await, cell.client(passthrough).await);
        put(&a.vfs, "file", b"....").await;
        let first = Program::open(&a, 1, "file", WRITE).await;
        let second = Program::open(&b, 1, "file", WRITE).await;
        first.write(WriteTo::Offset(0), b"a").await.unwrap();
        a.vfs.flush(first.handle).await.unwrap();
        second.write(WriteTo::Offset(1), b"b").await.unwrap();
        b.vfs.flush(second.handle).await.unwrap();
        assert_eq!(content(&b.vfs, second.handle), b"ab..");
        first.write(WriteTo::End, b"longer").await.unwrap();
        a.vfs.fsync(&root(), first.handle).await.unwrap();
        assert_eq!(content(&a.vfs, first.handle), b"ab..longer");
        second.write(WriteTo::End, b"!").await.unwrap();
        second.close().await;
        first.close().await;
        assert_eq!(read(&cell.client(true).await.vfs, "file").await, b"ab..longer!");
    }
}

/// W5: "A client that wrote and did not commit keeps it until its last close"
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_committed_keeps_the_lock_until_it_is() {
    let cell = Cell::start().await;
    let (a, b) = (cell.client(true).await, cell.client(true).await);
    put(&a.vfs, "file", b"....").await;
    let first = Program::open(&a, 1, "file", WRITE).await;
    let second = Program::open(&b, 1, "file", WRITE).await;
    first.write(WriteTo::Offset(0), b"a").await.unwrap();
    let change = || b.vfs.write(second.handle, WriteTo::Offset(1), b"b", false);
    assert!(matches!(change(), Err(Error::Shared)));
    let refused = b.vfs.with_lock(&root(), second.handle, false, change).await;
    assert!(matches!(refused, Err(Error::Fs(FsError::LockBusy { .. }))), "{refused:?}");
    let (written, ()) = tokio::join!(second.write(WriteTo::Offset(1), b"b"), async {
        a.vfs.flush(first.handle).await.unwrap();
    });
    written.unwrap();
    second.close().await;
    first.close().await;
    assert_eq!(read(&a.vfs, "file").await, b"ab..");
}

/// L4: "Whoever gets a lock reads the newest version from then on"
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_under_locks_of_several_clients_lose_no_step() {
    let cell = Cell::start().await;
    let clients = [cell.client(true).await, cell.client(false).await, cell.client(true).await];
    put(&clients[0].vfs, "count", b"").await;
    let mut programs = Vec::new();
    for (number, client) in (1..).zip(&clients) {
        programs.push(Program::open(client, number, "count", WRITE).await);
        programs.push(Program::open(client, number + 10, "count", WRITE).await);
    }
    let count = |program: &Program<'_>| {
        let (vfs, owner, handle) = (program.vfs.clone(), program.owner, program.handle);
        tokio::spawn(async move {
            let program = Program { vfs: &vfs, owner, handle };
            for _ in 0..15 {
                program.add_one().await;
            }
        })
    };
    let counting: Vec<_> = programs.iter().map(count).collect();
    for task in counting {
        task.await.unwrap();
    }
    assert_eq!(read(&clients[1].vfs, "count").await, b"90");
    for program in programs {
        program.close().await;
    }
}

/// L4, the other side: what a locker wrote is committed before its lock goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unlock_commits_what_anybody_here_wrote() {
    let cell = Cell::start().await;
    let (a, b) = (cell.client(true).await, cell.client(true).await);
    put(&a.vfs, "file", b"old").await;
    let writer = Program::open(&a, 1, "file", WRITE).await;
    let locker = Program::open(&a, 2, "file", READ).await;
    writer.write(WriteTo::Offset(0), b"new").await.unwrap();
    locker.lock().await;
    assert_eq!(read(&b.vfs, "file").await, b"old");
    locker.unlock().await;
    assert_eq!(read(&b.vfs, "file").await, b"new");
    locker.close().await;
    writer.close().await;
}

/// R1 for a file that is open for writing elsewhere and here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_of_a_shared_file_sees_what_another_client_closed() {
    for passthrough in [true, false] {
        let cell = Cell::start().await;
        let (a, b) = (cell.client(passthrough).await, cell.client(passthrough).await);
        put(&a.vfs, "file", b"old").await;
        let idle = Program::open(&a, 1, "file", WRITE).await;
        rewrite(&b.vfs, "file", b"newer").await;
        assert_eq!(read(&a.vfs, "file").await, b"newer");
        let again = Program::open(&a, 2, "file", WRITE).await;
        again.write(WriteTo::End, b"!").await.unwrap();
        again.close().await;
        idle.close().await;
        assert_eq!(read(&b.vfs, "file").await, b"newer!");
        let entry = a.vfs.lookup(&root(), at(ROOT, "file")).await.unwrap();
        assert_eq!(entry.attr.size, 6);
    }
}

/// W8 for a shared file: it is removed by another client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_file_that_is_removed_elsewhere_is_written_here_until_it_is_closed() {
    let cell = Cell::start().await;
    let (a, b) = (cell.client(true).await, cell.client(true).await);
    put(&a.vfs, "file", b"old").await;
    let idle = Program::open(&a, 1, "file", WRITE).await;
    Program::open(&b, 1, "file", WRITE).await.close().await;
    b.vfs.unlink(&root(), at(ROOT, "file")).await.unwrap();
    idle.write(WriteTo::Offset(0), b"own").await.unwrap();
    assert_eq!(content(&a.vfs, idle.handle), b"own");
    idle.lock().await;
    idle.close().await;
}

/// A file that many open, append to and close, some of them holding it open meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_to_a_file_that_stays_open_elsewhere_lose_nothing() {
    let cell = Cell::start().await;
    let (a, b) = (cell.client(true).await, cell.client(true).await);
    put(&a.vfs, "log", b"").await;
    let idle =
        [Program::open(&a, 90, "log", WRITE).await, Program::open(&b, 91, "log", WRITE).await];
    let append = |vfs: &Vfs, owner: u64| {
        let vfs = vfs.clone();
        tokio::spawn(async move {
            for _ in 0..12 {
                let handle = open(&vfs, "log", WRITE).await.handle;
                let program = Program { vfs: &vfs, owner: LockOwner(owner), handle };
                program.write(WriteTo::End, b"line\n").await.unwrap();
                program.close().await;
            }
        })
    };
    for task in [append(&a.vfs, 1), append(&b.vfs, 2), append(&a.vfs, 3), append(&b.vfs, 4)] {
        task.await.unwrap();
    }
    let shown = read(&cell.client(true).await.vfs, "log").await;
    assert_eq!(String::from_utf8(shown).unwrap(), "line\n".repeat(48));
    for program in idle {
        program.close().await;
    }
}

/// Else it would wait for the one that has the lock, and that one for what it has written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_lock_does_not_keep_its_holder_from_writing() {
    let cell = Cell::start().await;
    let (a, b) = (cell.client(true).await, cell.client(true).await);
    put(&a.vfs, "file", b"....").await;
    let (waits, writes) =
        (Program::open(&a, 1, "file", WRITE).await, Program::open(&b, 1, "file", WRITE).await);
    writes.lock().await;
    waits.write(WriteTo::Offset(0), b"a").await.unwrap();
    tokio::join!(waits.lock(), async {
        while a.rpc_count("directory.lock_range") == 0 {
            tokio::task::yield_now().await;
        }
        writes.write(WriteTo::Offset(1), b"b").await.unwrap();
        writes.unlock().await;
    });
    assert_eq!(content(&a.vfs, waits.handle), b"ab..");
    waits.close().await;
    writes.close().await;
}
