use super::*;
use std::sync::{Arc, Mutex};

/// What an output printed.
#[derive(Clone, Default)]
pub(crate) struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An output whose stdout and stderr can be looked at.
pub(crate) fn captured(is_json: bool) -> (Output, Captured, Captured) {
    let (out, err) = (Captured::default(), Captured::default());
    (Output::to(is_json, Box::new(out.clone()), Box::new(err.clone())), out, err)
}

#[derive(Serialize)]
struct Files(Vec<(&'static str, u64)>);

impl Report for Files {
    fn table(&self) -> Table {
        let rows = self.0.iter().map(|(name, size)| vec![size.to_string(), (*name).to_owned()]);
        Table { header: vec!["size", "name"], rows: rows.collect() }
    }
}

fn files() -> Files {
    Files(vec![("a", 1), ("long name", 1234567), ("evil\x1b[2J\u{202e}", 0)])
}

#[test]
fn a_table_is_aligned_and_cannot_drive_the_terminal() {
    let (mut output, out, _) = captured(false);
    output.show(&files()).unwrap();
    let expected = "SIZE     NAME\n      1  a\n1234567  long name\n      0  evil?[2J?\n";
    assert_eq!(out.text(), expected);
}

#[test]
fn json_is_one_document_on_one_line() {
    let (mut output, out, _) = captured(true);
    output.show(&files()).unwrap();
    let text = out.text();
    assert_eq!(text, "[[\"a\",1],[\"long name\",1234567],[\"evil\\u001b[2J\u{202e}\",0]]\n");
}

#[test]
fn pairs_are_aligned_too() {
    let table = Table::pairs([("name", "x".to_owned()), ("size in bytes", "y".to_owned())]);
    assert_eq!(table.render(), "name:           x\nsize in bytes:  y\n");
    assert_eq!(Table::lines(["one line".to_owned()]).render(), "one line\n");
    assert_eq!(Table::default().render(), "");
}

#[test]
fn a_failure_shows_what_why_and_what_to_try() {
    let (mut output, out, err) = captured(true);
    let failure = Failure::failed("cannot read x", io::Error::other("disk\non fire"));
    output.fail(&failure.remedy("water"));
    assert_eq!(err.text(), "dfs: cannot read x: disk on fire\n  try: water\n");
    output.fail(&Failure::usage("bad", "reason"));
    assert!(err.text().ends_with("dfs: bad: reason\n"));
    assert_eq!(out.text(), "");
}

#[test]
fn progress_is_shown_only_where_somebody_looks_and_wiped_afterwards() {
    let (mut output, _, err) = captured(false);
    output.progress("1 of 2");
    output.advance("file", 1, 2);
    assert!(output.progress.is_none());
    output.shows_progress = true;
    output.progress("1 of 2");
    output.advance("file", 1, 2);
    let (shown, bar) = output.progress.as_ref().unwrap();
    assert_eq!((shown.as_str(), bar.position(), bar.length()), ("file", 1, Some(2)));
    output.note("done");
    assert!(output.progress.is_none());
    assert_eq!(err.text(), "done\n");
}

struct Gone;

impl Write for Gone {
    fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_reader_that_has_gone_away_is_no_failure() {
    let mut output = Output::to(false, Box::new(Gone), Box::new(Captured::default()));
    output.show(&files()).unwrap();
    assert!(output.is_closed());
    output.bytes(b"more").unwrap();
}
