//! Passwords: from `DFS_PASSWORD_FILE`, from standard input if it is no terminal, or typed without
//! echo at the terminal. Never from an argument, which every user of the machine can read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::path::Path;

use dfs_proto::credential::Secret;
use dfs_proto::limits::PASSWORD_BYTES_MAX;
use nix::sys::termios::{self, LocalFlags, SetArg, Termios};

use super::exit::Exit;
use super::failure::{Context, Failure};
use crate::config::process_environment;

const TERMINAL: &str = "/dev/tty";

/// Gets the password of `user` from whoever has it.
///
/// # Errors
/// A [`Failure`] that names the source: not readable, empty, too long, interrupted.
pub fn read(user: &str) -> Result<Secret, Failure> {
    if let Some(path) = process_environment("DFS_PASSWORD_FILE") {
        let path = Path::new(&path);
        let source = format!("password file {} (DFS_PASSWORD_FILE)", path.display());
        let file = File::open(path).about(|| format!("cannot read {source}"))?;
        return first_line(file, &source);
    }
    if !io::stdin().is_terminal() {
        return first_line(io::stdin(), "standard input");
    }
    ask_hidden(&format!("Password of {user}: "))
}

/// Gets the present password of `user` and the next one: the first two lines of standard input, or
/// typed. The environment is not asked: what it holds is for logins.
///
/// # Errors
/// As [`read`]; also if the new one is typed in two ways.
pub fn read_change(user: &str, from_stdin: bool) -> Result<(Secret, Secret), Failure> {
    if from_stdin {
        let mut input = BufReader::new(io::stdin());
        let old = next_line(&mut input, "the first line of standard input")?;
        return Ok((old, next_line(&mut input, "the second line of standard input")?));
    }
    let old = ask_hidden(&format!("Password of {user}: "))?;
    Ok((old, ask_twice(user)?))
}

/// Gets a password for `user` to have from now on, as [`read_change`] does.
///
/// # Errors
/// As [`read_change`].
pub fn read_new(user: &str, from_stdin: bool) -> Result<Secret, Failure> {
    match from_stdin {
        true => first_line(io::stdin(), "standard input"),
        false => ask_twice(user),
    }
}

/// What nobody sees while typing it has to be typed twice.
fn ask_twice(user: &str) -> Result<Secret, Failure> {
    let first = ask_hidden(&format!("New password of {user}: "))?;
    let second = ask_hidden("The same again: ")?;
    match first == second {
        true => Ok(first),
        false => Err(Failure::usage("no new password", "the two that were typed differ")),
    }
}

/// Asks a yes-or-no question at the terminal; anything but `y` or `yes` is no.
///
/// # Errors
/// A [`Failure`] if there is no terminal.
pub fn confirm(question: &str) -> Result<bool, Failure> {
    let mut terminal = open_terminal()?;
    let cannot = || "cannot ask at the terminal".to_owned();
    write!(terminal, "{question} [y/N] ").about(cannot)?;
    let mut answer = String::new();
    BufReader::new(terminal.take(64)).read_line(&mut answer).about(cannot)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

fn first_line(reader: impl Read, source: &str) -> Result<Secret, Failure> {
    next_line(&mut BufReader::new(reader), source)
}

fn next_line(reader: &mut impl BufRead, source: &str) -> Result<Secret, Failure> {
    let mut line = Vec::new();
    let limit = PASSWORD_BYTES_MAX as u64 + 2;
    reader.take(limit).read_until(b'\n', &mut line).about(|| format!("cannot read {source}"))?;
    while matches!(line.last(), Some(b'\n' | b'\r')) {
        line.pop();
    }
    checked(line, source)
}

fn checked(password: Vec<u8>, source: &str) -> Result<Secret, Failure> {
    let refuse = |why: &str| {
        Err(Failure::usage(format!("no password from {source}"), why.to_owned()).remedy(
            "type it at a terminal, pipe it in, or name a file that holds it in DFS_PASSWORD_FILE",
        ))
    };
    match String::from_utf8(password) {
        Ok(text) if text.is_empty() => refuse("it is empty"),
        Ok(text) if text.len() > PASSWORD_BYTES_MAX => {
            refuse(&format!("it is longer than {PASSWORD_BYTES_MAX} bytes"))
        }
        Ok(text) => Ok(Secret::new(text)),
        Err(_) => refuse("it is not UTF-8 text"),
    }
}

fn open_terminal() -> Result<File, Failure> {
    OpenOptions::new().read(true).write(true).open(TERMINAL).map_err(|error| {
        Failure::usage("cannot ask", error).remedy("run the command at a terminal")
    })
}

fn ask_hidden(prompt: &str) -> Result<Secret, Failure> {
    let mut terminal = open_terminal()?;
    let cannot = || "cannot read the password".to_owned();
    let quiet = Quiet::begin(&terminal).map_err(io::Error::from).about(cannot)?;
    let typed = write!(terminal, "{prompt}").and_then(|()| edit_line(&mut &terminal));
    drop(quiet);
    // The newline that was typed was not shown.
    let ended = writeln!(terminal);
    let typed = typed.and_then(|typed| ended.map(|()| typed)).about(cannot)?;
    match typed {
        Some(password) => checked(password, "the terminal"),
        None => Err(Failure::new(Exit::Failed, cannot(), "interrupted")),
    }
}

/// A terminal that shows nothing and sends no signals, until dropped: so the echo comes back
/// whatever is typed, Ctrl-C too.
struct Quiet {
    terminal: File,
    before: Termios,
}

impl Quiet {
    fn begin(terminal: &File) -> nix::Result<Quiet> {
        let terminal = terminal.try_clone().map_err(|_| nix::Error::EBADF)?;
        let before = termios::tcgetattr(&terminal)?;
        let mut quiet = before.clone();
        quiet.local_flags &= !(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG);
        termios::tcsetattr(&terminal, SetArg::TCSAFLUSH, &quiet)?;
        Ok(Quiet { terminal, before })
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if let Err(error) = termios::tcsetattr(&self.terminal, SetArg::TCSAFLUSH, &self.before) {
            tracing::warn!(%error, "terminal could not be set back; run: stty sane");
        }
    }
}

const CTRL_C: u8 = 3;
const CTRL_D: u8 = 4;
const CTRL_U: u8 = 21;
const BACKSPACE: u8 = 8;
const DELETE: u8 = 127;

/// Reads a line as typed, with the few keys that a terminal would have handled; `None` on Ctrl-C.
fn edit_line(keys: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let mut key = [0];
    loop {
        if keys.read(&mut key)? == 0 {
            return Ok(Some(line));
        }
        match key[0] {
            b'\n' | b'\r' | CTRL_D => return Ok(Some(line)),
            CTRL_C => return Ok(None),
            CTRL_U => line.clear(),
            BACKSPACE | DELETE => drop_last_letter(&mut line),
            _ if line.len() > PASSWORD_BYTES_MAX => {}
            byte => line.push(byte),
        }
    }
}

/// A letter of UTF-8 may be several bytes: all but the first have the form 10xxxxxx.
fn drop_last_letter(line: &mut Vec<u8>) {
    while let Some(byte) = line.pop() {
        if byte & 0xc0 != 0x80 {
            return;
        }
    }
}

/// Whether others than its owner may read a file that holds a secret.
pub fn is_exposed(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::PermissionsExt;
    Ok(fs::metadata(path)?.permissions().mode() & 0o077 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(keys: &[u8]) -> Option<Vec<u8>> {
        edit_line(&mut &keys[..]).unwrap()
    }

    #[test]
    fn a_line_is_edited_as_at_a_terminal() {
        assert_eq!(typed(b"secret\n"), Some(b"secret".to_vec()));
        assert_eq!(typed(b"secrxx\x7f\x08et\r"), Some(b"secret".to_vec()));
        assert_eq!(typed("a\u{e9}\x7fb\n".as_bytes()), Some(b"ab".to_vec()));
        assert_eq!(typed(b"wrong\x15right\n"), Some(b"right".to_vec()));
        assert_eq!(typed(b"\x7f\n"), Some(Vec::new()));
        assert_eq!(typed(b"abc\x03\n"), None);
        assert_eq!(typed(b"no end"), Some(b"no end".to_vec()));
    }

    #[test]
    fn only_the_first_line_of_a_file_counts() {
        let secret = first_line(&b"hunter2\r\nrest"[..], "x").unwrap();
        assert_eq!(secret.expose(), "hunter2");
        assert_eq!(first_line(&b" spaces stay "[..], "x").unwrap().expose(), " spaces stay ");
    }

    #[test]
    fn lines_follow_one_another() {
        let mut input = &b"old one\nnew one\n"[..];
        assert_eq!(next_line(&mut input, "x").unwrap().expose(), "old one");
        assert_eq!(next_line(&mut input, "x").unwrap().expose(), "new one");
        assert!(next_line(&mut input, "x").is_err());
    }

    #[test]
    fn an_empty_or_impossible_password_is_refused_with_its_source() {
        let long = vec![b'x'; PASSWORD_BYTES_MAX + 1];
        for bytes in [&b""[..], b"\n", b"\xff\n", &long] {
            let failure = first_line(bytes, "the file").unwrap_err();
            assert_eq!(failure.exit, Exit::Usage);
            assert!(failure.what.contains("the file"));
            assert!(failure.remedy.is_some());
        }
    }
}
