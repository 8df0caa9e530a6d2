//! The only place that prints. Results go to stdout, as a table or as JSON; errors, notes and
//! progress go to stderr. Text from elsewhere (names, server messages) loses its control
//! characters, so that no file name can drive a terminal.

use std::future::Future;
use std::io::{self, IsTerminal, Write};
use std::pin::pin;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::failure::Failure;

/// How often what is shown of a long command is brought up to date.
const TICK: Duration = Duration::from_millis(100);

/// A line that says what is being done.
const LINE: &str = "{spinner} {wide_msg}";

/// A bar with its figures. The name comes first and is cut if it is long.
const BAR: &str =
    "{msg:30!} [{wide_bar}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("a template of ours")
}

/// What a command prints: as JSON by its `Serialize`, for people by its table.
pub trait Report: Serialize {
    fn table(&self) -> Table;
}

/// Rows for people. With a header, columns are aligned; without, cells are joined by spaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    pub header: Vec<&'static str>,
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// Plain lines.
    pub fn lines(lines: impl IntoIterator<Item = String>) -> Table {
        Table { header: Vec::new(), rows: lines.into_iter().map(|line| vec![line]).collect() }
    }

    /// Aligned rows of names and values.
    pub fn pairs(pairs: impl IntoIterator<Item = (&'static str, String)>) -> Table {
        let rows = pairs.into_iter().map(|(name, value)| vec![format!("{name}:"), value]);
        Table { header: Vec::new(), rows: rows.collect() }
    }

    /// The table as text. Under a header numbers (cells of digits) stand right, the rest left; the
    /// last column is not padded.
    fn render(&self) -> String {
        let header: Vec<String> = self.header.iter().map(|word| word.to_uppercase()).collect();
        let rows: Vec<Vec<String>> = std::iter::once(&header)
            .filter(|header| !header.is_empty())
            .chain(&self.rows)
            .map(|row| row.iter().map(|cell| printable(cell)).collect())
            .collect();
        let widths = widths(&rows);
        let aligns_numbers = !self.header.is_empty();
        rows.iter().map(|row| render_row(row, &widths, aligns_numbers)).collect()
    }
}

fn widths(rows: &[Vec<String>]) -> Vec<usize> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    (0..columns).map(|column| width(column).unwrap_or(0)).collect()
}

fn render_row(row: &[String], widths: &[usize], aligns_numbers: bool) -> String {
    let mut line = String::new();
    for (column, cell) in row.iter().enumerate() {
        let width = widths[column];
        let is_number = !cell.is_empty() && cell.bytes().all(|byte| byte.is_ascii_digit());
        match is_number && aligns_numbers {
            true => line.push_str(&format!("{cell:>width$}")),
            false => line.push_str(&format!("{cell:<width$}")),
        }
        if column + 1 < row.len() {
            line.push_str("  ");
        }
    }
    line.truncate(line.trim_end().len());
    line.push('\n');
    line
}

/// `text` without what a terminal would act on.
pub fn printable(text: &str) -> String {
    let keep = |letter: char| !letter.is_control() && !is_direction(letter);
    text.chars().map(|letter| if keep(letter) { letter } else { '?' }).collect()
}

/// Characters that reorder the text around them.
fn is_direction(letter: char) -> bool {
    matches!(letter, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Where and how a command prints.
pub struct Output {
    is_json: bool,
    shows_progress: bool,
    /// What is shown now, under its name.
    progress: Option<(String, ProgressBar)>,
    is_closed: bool,
    out: Box<dyn Write + Send>,
    err: Box<dyn Write + Send>,
}

impl Output {
    /// The process's stdout and stderr.
    pub fn standard(is_json: bool) -> Output {
        let shows_progress = io::stderr().is_terminal();
        Output {
            shows_progress,
            ..Output::to(is_json, Box::new(io::stdout()), Box::new(io::stderr()))
        }
    }

    /// Somewhere else; without progress.
    pub fn to(is_json: bool, out: Box<dyn Write + Send>, err: Box<dyn Write + Send>) -> Output {
        Output { is_json, shows_progress: false, progress: None, is_closed: false, out, err }
    }

    /// Prints a result.
    ///
    /// # Errors
    /// A [`Failure`] if stdout takes nothing; that its reader has gone away is none.
    pub fn show(&mut self, report: &impl Report) -> Result<(), Failure> {
        let text = match self.is_json {
            true => json_line(report),
            false => report.table().render(),
        };
        self.bytes(text.as_bytes())
    }

    /// Writes bytes to stdout as they are.
    ///
    /// # Errors
    /// As [`Output::show`].
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.clear_progress();
        if self.is_closed {
            return Ok(());
        }
        match self.out.write_all(bytes).and_then(|()| self.out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.is_closed = true,
            Err(error) => return Err(Failure::failed("cannot write output", error)),
            Ok(()) => {}
        }
        Ok(())
    }

    /// Whether stdout's reader has gone away: whatever is still to be printed, nobody wants it.
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Tells a person something that is not the result.
    pub fn note(&mut self, text: &str) {
        self.clear_progress();
        self.complain(&format!("{}\n", printable(text)));
    }

    /// Shows what a long command does, on one line, if anybody looks at it.
    pub fn progress(&mut self, text: &str) {
        if !self.shows_progress {
            return;
        }
        let (_, line) = self.progress.get_or_insert_with(|| {
            let line = ProgressBar::new_spinner().with_style(style(LINE));
            line.enable_steady_tick(TICK);
            (String::new(), line)
        });
        line.set_message(printable(text));
    }

    /// Shows how much of `what` is done, as a bar, if anybody looks at it. Units: bytes.
    pub fn advance(&mut self, what: &str, done: u64, whole: u64) {
        if !self.shows_progress {
            return;
        }
        if self.progress.as_ref().is_none_or(|(shown, _)| shown != what) {
            self.clear_progress();
            let bar = ProgressBar::new(whole).with_style(style(BAR)).with_message(printable(what));
            self.progress = Some((what.to_owned(), bar));
        }
        if let Some((_, bar)) = &self.progress {
            bar.set_length(whole);
            bar.set_position(done.min(whole));
        }
    }

    /// Shows how much of `what` is done while `work` does it. Units: bytes.
    pub async fn advance_while<T>(
        &mut self,
        what: &str,
        whole: u64,
        done: impl Fn() -> u64,
        work: impl Future<Output = T>,
    ) -> T {
        let mut work = pin!(work);
        if !self.shows_progress {
            return work.await;
        }
        loop {
            self.advance(what, done(), whole);
            if let Ok(result) = tokio::time::timeout(TICK, &mut work).await {
                self.clear_progress();
                return result;
            }
        }
    }

    fn clear_progress(&mut self) {
        if let Some((_, shown)) = self.progress.take() {
            shown.finish_and_clear();
        }
    }

    /// Shows why the command failed: what, the causes, the remedy.
    pub fn fail(&mut self, failure: &Failure) {
        self.clear_progress();
        let causes = printable(&failure.causes().replace('\n', " "));
        let mut text = format!("dfs: {}: {causes}\n", printable(&failure.what));
        if let Some(remedy) = &failure.remedy {
            text.push_str(&format!("  try: {}\n", printable(remedy)));
        }
        self.complain(&text);
    }

    /// Shows text that clap laid out (help, version, usage errors).
    ///
    /// # Errors
    /// As [`Output::show`].
    pub fn usage(&mut self, text: &str, is_error: bool) -> Result<(), Failure> {
        if is_error {
            self.complain(text);
            return Ok(());
        }
        self.bytes(text.as_bytes())
    }

    fn complain(&mut self, text: &str) {
        // If stderr is gone there is nobody left to tell.
        let _ = self.err.write_all(text.as_bytes()).and_then(|()| self.err.flush());
    }
}

/// One JSON document on one line.
pub fn json_line(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string(value).expect("reports have string keys only");
    text.push('\n');
    text
}

#[cfg(test)]
pub(crate) mod tests;
