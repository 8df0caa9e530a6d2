use std::sync::Arc;

use futures_util::FutureExt;

use super::*;

const DIR: u64 = 10;
const CHILD: u64 = 20;
const LEFT: Duration = Duration::from_secs(9);

fn name(text: &str) -> Name {
    Name::parse(text.as_bytes()).unwrap()
}

fn place(dir: u64, text: &str) -> Place {
    Place { parent: dir, name: name(text) }
}

/// A kernel that was told of `f` in `DIR`, which names `CHILD`, and of the attributes of both.
fn told() -> KernelCache {
    let kernel = KernelCache::default();
    assert_eq!(kernel.tell_name(&place(DIR, "f"), CHILD, || Some(LEFT)), LEFT);
    assert_eq!(kernel.tell_attr(CHILD, || Some(LEFT)), LEFT);
    assert_eq!(kernel.tell_attr(DIR, || Some(LEFT)), LEFT);
    kernel
}

fn is_settled(kernel: &KernelCache) -> bool {
    let order = kernel.order();
    kernel.settled(order).now_or_never().is_some()
}

/// Takes back what there is to take back, and says what that was.
fn taken(kernel: &KernelCache) -> Vec<(u64, StaleName)> {
    let mut all = Vec::new();
    loop {
        let Some(names) = kernel.state().take_names() else { return all };
        all.extend(names.names.iter().cloned().map(|name| (names.dir, name)));
        kernel.names_taken_back(&names);
    }
}

fn stale(text: &str, child: u64, way: Way) -> StaleName {
    StaleName { name: name(text), child, way }
}

#[test]
fn what_is_not_promised_has_no_lifetime_and_needs_not_be_taken_back() {
    let kernel = KernelCache::default();
    assert_eq!(kernel.tell_name(&place(DIR, "f"), CHILD, || None), Duration::ZERO);
    assert_eq!(kernel.tell_attr(CHILD, || None), Duration::ZERO);
    kernel.stale_name(DIR, &name("f"));
    kernel.stale_attr(CHILD);
    kernel.stale_all();
    assert!(taken(&kernel).is_empty() && kernel.take_attrs().is_empty() && is_settled(&kernel));
}

#[test]
fn a_name_that_changed_is_dropped_once_and_waited_for() {
    let kernel = told();
    kernel.stale_name(DIR, &name("f"));
    kernel.stale_name(DIR, &name("f"));
    assert_eq!(kernel.take_attrs(), [CHILD]);
    assert!(kernel.is_doubtful(CHILD) && !is_settled(&kernel));
    assert_eq!(taken(&kernel), [(DIR, stale("f", CHILD, Way::Drop))]);
    assert!(!kernel.is_doubtful(CHILD) && is_settled(&kernel) && !kernel.has_names());
}

#[test]
fn names_in_a_directory_that_is_changed_from_here_are_dropped_after_that_and_not_waited_for() {
    let kernel = told();
    kernel.begin_change(DIR);
    kernel.begin_change(DIR);
    kernel.stale_name(DIR, &name("f"));
    assert!(is_settled(&kernel), "who waits for us may be who we wait for");
    assert!(kernel.is_doubtful(CHILD), "until it is dropped");
    kernel.end_change(DIR);
    assert!(taken(&kernel).is_empty(), "the kernel holds it for the other change");
    kernel.end_change(DIR);
    assert!(!is_settled(&kernel));
    assert_eq!(taken(&kernel).len(), 1);
    assert!(is_settled(&kernel));
}

#[tokio::test]
async fn who_waits_for_a_name_goes_on_when_a_change_from_here_begins() {
    let kernel = Arc::new(told());
    kernel.stale_name(DIR, &name("f"));
    let order = kernel.order();
    let waiting = kernel.settled(order);
    tokio::pin!(waiting);
    assert!(futures_util::poll!(&mut waiting).is_pending());
    kernel.begin_change(DIR);
    waiting.await;
}

#[test]
fn attributes_of_a_directory_that_is_changed_from_here_have_no_lifetime_and_are_taken_back() {
    let kernel = told();
    kernel.begin_change(DIR);
    assert_eq!(kernel.tell_attr(DIR, || Some(LEFT)), Duration::ZERO);
    assert!(kernel.take_attrs().is_empty());
    kernel.end_change(DIR);
    assert_eq!(kernel.take_attrs(), [DIR]);
    assert_eq!(kernel.tell_attr(DIR, || Some(LEFT)), LEFT);
}

#[test]
fn what_was_just_told_of_an_inode_is_taken_back_with_its_name() {
    let kernel = told();
    kernel.stale_attr_of(DIR, &name("f"), |_| false);
    assert_eq!(kernel.take_attrs(), [CHILD]);
    assert!(taken(&kernel).is_empty(), "the name is as it was");
    kernel.stale_attr_of(DIR, &name("f"), |nodeid| nodeid == CHILD);
    assert_eq!(taken(&kernel), [(DIR, stale("f", CHILD, Way::Drop))]);
}

#[test]
fn a_renamed_name_is_taken_back_unless_it_is_promised_where_it_is_now() {
    let kernel = told();
    let (f, g, h) = (place(DIR, "f"), place(DIR + 1, "g"), place(DIR, "h"));
    kernel.renamed((&f, &g), false, |at, child| *at == g && child == CHILD);
    assert_eq!((kernel.named(DIR, &f.name), kernel.named(DIR + 1, &g.name)), (None, Some(CHILD)));
    assert!(taken(&kernel).is_empty());
    kernel.tell_name(&h, CHILD + 1, || Some(LEFT));
    kernel.renamed((&g, &h), true, |_, child| child == CHILD);
    assert_eq!(kernel.named(DIR, &h.name), Some(CHILD));
    assert_eq!(taken(&kernel), [(DIR + 1, stale("g", CHILD + 1, Way::Drop))]);
    kernel.renamed((&h, &f), false, |_, _| false);
    assert_eq!(taken(&kernel), [(DIR, stale("f", CHILD, Way::Drop))]);
}

#[test]
fn when_a_promise_ends_names_expire_and_when_all_end_all_do() {
    let kernel = told();
    kernel.tell_name(&place(DIR + 1, "g"), CHILD + 1, || Some(LEFT));
    kernel.stale_dir(DIR);
    let mut attrs = kernel.take_attrs();
    attrs.sort_unstable();
    assert_eq!(attrs, [DIR, CHILD]);
    assert_eq!(taken(&kernel), [(DIR, stale("f", CHILD, Way::Expire))]);
    kernel.tell_attr(CHILD + 1, || Some(LEFT));
    kernel.stale_all();
    assert_eq!(kernel.take_attrs(), [CHILD + 1]);
    assert_eq!(taken(&kernel), [(DIR + 1, stale("g", CHILD + 1, Way::Expire))]);
}

#[test]
fn a_name_told_anew_while_the_old_one_is_dropped_is_dropped_again_when_it_changes() {
    let kernel = told();
    kernel.stale_name(DIR, &name("f"));
    let taken_first = kernel.state().take_names().unwrap();
    kernel.tell_name(&place(DIR, "f"), CHILD + 1, || Some(LEFT));
    kernel.stale_name(DIR, &name("f"));
    kernel.names_taken_back(&taken_first);
    assert!(!is_settled(&kernel));
    assert_eq!(taken(&kernel), [(DIR, stale("f", CHILD + 1, Way::Drop))]);
}

#[test]
fn what_the_kernel_has_forgotten_is_forgotten_here() {
    let kernel = told();
    let most = SWEEP_NAMES_MIN as u64;
    for number in 0..most {
        kernel.tell_name(&place(DIR, &number.to_string()), 1000 + number, || Some(LEFT));
    }
    kernel.forgot(1000, 3, |nodeid| nodeid == CHILD);
    assert_eq!(kernel.state().name_count, 1);
    assert_eq!(kernel.named(DIR, &name("f")), Some(CHILD));
    kernel.forgot(DIR, 3, |_| true);
    assert!(!kernel.has_names());
    kernel.stale_attr(DIR);
    assert!(kernel.take_attrs().is_empty());
}

#[test]
fn a_thread_that_was_sent_back_tries_again_once_and_soon() {
    let kernel = KernelCache::default();
    let at = Duration::from_secs;
    assert!(kernel.sent_back(7, at(1)));
    assert!(!kernel.tries_again(8, at(2)) && kernel.tries_again(7, at(2)));
    assert!(!kernel.tries_again(7, at(2)), "that is the next call");
    kernel.sent_back(7, at(3));
    assert!(!kernel.tries_again(7, at(3) + SECOND_TRY_MAX));
    for pid in 1..=2 * SENT_BACK_MAX as u32 {
        kernel.sent_back(pid, at(4));
    }
    assert_eq!(kernel.state().sent_back.len(), SENT_BACK_MAX);
}

#[test]
fn those_who_drop_names_end_with_the_connection() {
    let kernel = told();
    kernel.stale_name(DIR, &name("f"));
    kernel.end();
    assert!(kernel.next_names().is_none() && is_settled(&kernel));
}
