//! Rules about single files and lines: sizes, characters, fences, words.

use super::source::{Source, has_word, tokens};

/// Something wrong, and where.
pub type Finding = String;

pub fn at(source: &Source, line: usize, what: &str) -> Finding {
    format!("{}:{line}: {what}", source.path)
}

const FILE_LINES_MAX: usize = 500;
const TEST_FILE_LINES_MAX: usize = 1000;
const LINE_COLUMNS_MAX: usize = 100;

pub fn sizes(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    let limit = if source.is_test() { TEST_FILE_LINES_MAX } else { FILE_LINES_MAX };
    let count = source.text.lines().count();
    if count > limit {
        found.push(at(source, count, &format!("over {limit} lines: split it by what it owns")));
    }
    for (index, line) in source.text.lines().enumerate() {
        if line.chars().count() > LINE_COLUMNS_MAX {
            found.push(at(source, index + 1, &format!("over {LINE_COLUMNS_MAX} columns: wrap it")));
        }
    }
    found
}

/// Bytes that are not ASCII, in any text file.
pub fn not_ascii(path: &str, text: &str) -> Vec<Finding> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.is_ascii());
    lines.map(|(index, _)| format!("{path}:{}: not ASCII: write \\u{{..}}", index + 1)).collect()
}

/// Words that may stand only in certain places.
pub struct Fence {
    pub words: &'static [&'static str],
    /// Files (ending in `.rs`) and directories (ending in `/`) inside the fence.
    pub allowed: &'static [&'static str],
    /// Whether tests may stand outside.
    pub spares_tests: bool,
    pub remedy: &'static str,
}

pub const FENCES: [Fence; 8] = [
    Fence {
        words: &["fuser"],
        allowed: &["dfs-mount/src/fuse.rs", "dfs-mount/src/fuse/"],
        spares_tests: false,
        remedy: "only fuse/ knows fuser: give vfs a type of its own",
    },
    Fence {
        words: &["reqwest"],
        allowed: &["dfs-proto/src/client/http.rs"],
        spares_tests: false,
        remedy: "use dfs_proto::client::HttpDialer",
    },
    Fence {
        words: &["bincode"],
        allowed: &["dfs-proto/src/codec.rs"],
        spares_tests: false,
        remedy: "use dfs_proto::codec, which sets the limit",
    },
    Fence {
        words: &["moka"],
        allowed: &["dfs-mount/src/cache.rs", "dfs-mount/src/cache/"],
        spares_tests: false,
        remedy: "moka has a clock of its own: it stays inside cache/",
    },
    Fence {
        words: &["rusqlite", "libsqlite3_sys"],
        allowed: &["dfs-server/src/meta/sqlite.rs", "dfs-server/src/meta/sqlite/"],
        spares_tests: false,
        remedy: "use the engine seam of meta",
    },
    Fence {
        words: &["SystemTime::now", "Instant::now"],
        allowed: &["dfs-proto/src/clock.rs"],
        spares_tests: true,
        remedy: "take a dfs_proto::clock::Clock, so that a test can set the time",
    },
    Fence {
        words: &[
            "println!",
            "eprintln!",
            "print!",
            "eprint!",
            "dbg!",
            "io::stdout()",
            "io::stderr()",
            "stdout().lock()",
            "stderr().lock()",
        ],
        allowed: &["dfs-mount/src/cli/output.rs", SERVER_PRINTER, "examples/"],
        spares_tests: true,
        remedy: "print through dfs-mount's cli/output.rs, log through tracing",
    },
    Fence {
        words: &["libc"],
        allowed: &["dfs-mount/src/sys.rs", "dfs-mount/src/fuse/errno.rs"],
        spares_tests: true,
        remedy: "use nix, or put it behind a safe function in dfs-mount/src/sys.rs",
    },
];

/// The server's one writer: one line says that it is ready, and one why it is not.
pub const SERVER_PRINTER: &str = "dfs-server/src/cli.rs";

/// The one place where `unsafe` may stand.
pub const UNSAFE: Fence = Fence {
    words: &["unsafe"],
    allowed: &["dfs-mount/src/sys.rs"],
    spares_tests: false,
    remedy: "unsafe code lives in dfs-mount/src/sys.rs, argued and tested",
};

impl Fence {
    pub fn allows(&self, path: &str) -> bool {
        self.allowed.iter().any(|place| match place.strip_suffix('/') {
            Some(_) => path.starts_with(place),
            None => path == *place,
        })
    }

    pub fn breaches(&self, source: &Source) -> Vec<Finding> {
        let mut found = Vec::new();
        if self.allows(&source.path) {
            return found;
        }
        for (number, line) in source.code_lines() {
            if self.spares_tests && source.is_test_line(number) {
                continue;
            }
            let word = self.words.iter().find(|word| has_word(line, word));
            found
                .extend(word.map(|word| at(source, number, &format!("`{word}`: {}", self.remedy))));
        }
        found
    }

    pub fn is_used_in(&self, source: &Source) -> bool {
        source.code_lines().any(|(_, line)| self.words.iter().any(|word| has_word(line, word)))
    }
}

/// The lines that write to standard output, and those that write to standard error.
pub fn writers(source: &Source) -> [(&'static str, Vec<usize>); 2] {
    let lines_with = |macros: [&str; 2], stream: &str| {
        let lines = source.code_lines().filter(|(number, line)| {
            let is_direct = macros.iter().any(|word| has_word(line, word));
            let is_write = has_word(line, "writeln!") || has_word(line, "write!");
            !source.is_test_line(*number) && (is_direct || is_write && line.contains(stream))
        });
        lines.map(|(number, _)| number).collect()
    };
    [
        ("stdout", lines_with(["println!", "print!"], "stdout()")),
        ("stderr", lines_with(["eprintln!", "eprint!"], "stderr()")),
    ]
}

/// Marks of work that is promised and not done, and lints that are silenced instead of heeded.
///
/// The words are put together so that this file does not hold them.
pub fn unfinished(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX")];
    for (index, line) in source.text.lines().enumerate() {
        if let Some(mark) = marks.iter().find(|mark| has_word(line, mark)) {
            found.push(at(source, index + 1, &format!("{mark}: do it, or open an issue")));
        }
    }
    let macros = [concat!("to", "do!"), concat!("un", "implemented!")];
    for (number, line) in source.code_lines() {
        if let Some(stub) = macros.iter().find(|stub| has_word(line, stub)) {
            found.push(at(source, number, &format!("{stub}: no stubs, build it or leave it out")));
        }
        if line.replace(' ', "").contains("#[ignore]") {
            let what = "ignored without a reason: write #[ignore = \"reason, issue\"]";
            found.push(at(source, number, what));
        }
        if silences_lint(line) && !(source.path == UNSAFE.allowed[0] && is_unsafe_permit(line)) {
            found.push(at(source, number, "silenced lint: mend what it points at"));
        }
    }
    found
}

fn silences_lint(line: &str) -> bool {
    let line = line.replace(' ', "");
    ["#[allow(", "#![allow(", "#[expect(", "#![expect("].iter().any(|head| line.contains(head))
}

fn is_unsafe_permit(line: &str) -> bool {
    line.replace(' ', "").contains("(unsafe_code")
}

/// Imports of everything a module has.
pub fn globs(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut statement: Option<(usize, String)> = None;
    for (line, word) in tokens(&source.code) {
        match (&mut statement, word) {
            (None, "use") => statement = Some((line, String::new())),
            (Some((start, text)), ";") => {
                let is_spared = text == "super::*" && source.is_test_line(*start);
                if text.contains("::*") || text.contains("{*") || text.contains(",*") {
                    let what = "glob import: name what is used (tests may use super::*)";
                    found.extend((!is_spared).then(|| at(source, *start, what)));
                }
                statement = None;
            }
            (Some((_, text)), word) => text.push_str(word),
            (None, _) => {}
        }
    }
    found
}

/// Words that say nothing about what a thing is.
const EMPTY_WORDS: [&str; 8] =
    ["manager", "helper", "helpers", "util", "utils", "misc", "info", "common"];

/// Types and modules named with such a word, and functions named by an empty verb.
pub fn names(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    let tokens = tokens(&source.code);
    for window in tokens.windows(2) {
        let [(line, keyword), (_, name)] = [window[0], window[1]];
        let words = words_of(name);
        let is_empty_name = match keyword {
            "struct" | "enum" | "trait" | "type" | "mod" => {
                words.iter().any(|word| EMPTY_WORDS.contains(&word.as_str()))
            }
            "fn" => name == "process",
            _ => false,
        };
        if is_empty_name {
            let what = format!("`{name}` says nothing: name it after what it owns or does");
            found.push(at(source, line, &what));
        }
    }
    found
}

/// `FileUtil` and `file_util` are both `["file", "util"]`.
fn words_of(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for letter in name.chars() {
        if letter == '_' || letter.is_uppercase() {
            words.push(String::new());
        }
        if letter != '_' {
            words.last_mut().expect("never empty").push(letter.to_ascii_lowercase());
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
fn source(path: &str, text: &str) -> Source {
    Source::new(path, text)
}

#[test]
fn long_files_and_lines_are_found() {
    let long = "x\n".repeat(FILE_LINES_MAX + 1);
    assert_eq!(sizes(&source("dfs-mount/src/a.rs", &long)).len(), 1);
    assert!(sizes(&source("dfs-mount/src/a/tests.rs", &long)).is_empty());
    assert!(sizes(&source("tests/it.rs", &"x\n".repeat(TEST_FILE_LINES_MAX + 1))).len() == 1);
    let wide = format!("fn a() {{}}\n// {}\n", "x".repeat(LINE_COLUMNS_MAX));
    assert!(sizes(&source("dfs-mount/src/a.rs", &wide))[0].starts_with("dfs-mount/src/a.rs:2:"));
}

#[test]
fn fences_hold_outside_and_open_inside() {
    let breach = |fence: &Fence, path: &str, text: &str| fence.breaches(&source(path, text)).len();
    let [fuser, _, _, _, _, clock, print, _] = &FENCES;
    assert_eq!(breach(fuser, "dfs-mount/src/vfs.rs", "use fuser::X;"), 1);
    assert_eq!(breach(fuser, "dfs-mount/src/vfs.rs", "// as fuser does\nlet a = \"fuser\";"), 0);
    assert_eq!(breach(fuser, "dfs-mount/src/fuse/reply.rs", "use fuser::X;"), 0);
    assert_eq!(breach(fuser, "dfs-mount/src/fused.rs", "use fuser::X;"), 1);
    assert_eq!(breach(clock, "dfs-mount/src/vfs.rs", "let a = std::time::Instant::now();"), 1);
    assert_eq!(breach(clock, "dfs-mount/src/vfs/tests.rs", "let a = Instant::now();"), 0);
    assert_eq!(breach(print, "dfs-server/src/rpc.rs", "println!(\"x\");"), 1);
    assert_eq!(breach(&UNSAFE, "dfs-mount/src/fuse.rs", "#![deny(unsafe_code)]"), 0);
    assert_eq!(breach(&UNSAFE, "dfs-mount/src/fuse.rs", "let a = unsafe { b() };"), 1);
}

#[test]
fn writers_are_counted_by_stream() {
    let text =
        "writeln!(io::stdout(), \"a\");\nio::stdout().flush();\nprintln!();\neprint!(\"\");\n";
    let [(_, out), (_, err)] = writers(&source("dfs-server/src/cli.rs", text));
    assert_eq!((out, err), (vec![1, 3], vec![4]));
}

#[test]
fn unfinished_work_and_silenced_lints_are_found() {
    let found = |text: &str| unfinished(&source("dfs-mount/src/a.rs", text)).len();
    assert_eq!(found(concat!("// TO", "DO later")), 1);
    assert_eq!(found("mkstemp(\"dfsXX\")"), 0);
    assert_eq!(found(concat!("fn a() { to", "do!() }")), 1);
    assert_eq!(found("#[ignore]"), 1);
    assert_eq!(found("#[ignore = \"needs fio, issue 7\"]"), 0);
    assert_eq!(found(concat!("#[allow", "(clippy::too_many_lines)]")), 1);
    assert_eq!(found(concat!("#![allow", "(unsafe_code)]")), 1);
    let sys = concat!("#![allow", "(unsafe_code)]");
    assert!(unfinished(&source("dfs-mount/src/sys.rs", sys)).is_empty());
}

#[test]
fn globs_are_found_but_for_super_in_tests() {
    let found = |path: &str, text: &str| globs(&source(path, text)).len();
    assert_eq!(found("dfs-mount/src/a.rs", "use b::*;\nuse c::{d::*, e};\nlet f = g * h;"), 2);
    assert_eq!(found("dfs-mount/src/a.rs", "use super::*;"), 1);
    assert_eq!(found("dfs-mount/src/a/tests.rs", "use super::*;"), 0);
    assert_eq!(found("dfs-mount/src/a/tests.rs", "use super::super::*;"), 1);
}

#[test]
fn empty_names_are_found() {
    let found = |text: &str| names(&source("dfs-mount/src/a.rs", text)).len();
    assert_eq!(found("struct LockManager;\nmod util;\nfn process() {}"), 3);
    assert_eq!(found("struct Utility;\nenum Managed {}\nfn processed() {}\nlet info = 1;"), 0);
}

#[test]
fn bytes_beyond_ascii_are_found() {
    assert_eq!(not_ascii("a.rs", "ok\n\u{e9}\n").len(), 1);
}
