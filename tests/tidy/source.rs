//! Source files as the rules see them: the text, the code in it, and which lines are tests.
//!
//! This is no parser. It knows comments, strings and braces, which is what a rule about words
//! needs in order not to be fooled by prose; macros are read as they stand.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Where Rust sources live, seen from the repository's root.
const PLACES: [&str; 5] = ["dfs-proto", "dfs-mount", "dfs-server", "tests", "examples"];

/// The checkout that is examined.
pub fn root() -> PathBuf {
    // Read when the test runs, so that one build of it can examine another checkout.
    let path = std::env::var_os("CARGO_MANIFEST_DIR");
    path.map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from)
}

/// A file's text, or `None` if it does not exist.
pub fn read(path: &str) -> Option<String> {
    fs::read_to_string(root().join(path)).ok()
}

/// One Rust file.
pub struct Source {
    /// Relative to the repository's root.
    pub path: String,
    pub text: String,
    /// The text with comments and the insides of literals blanked, line by line the same.
    pub code: String,
    /// By line, from 0: whether only tests compile it.
    test_lines: Vec<bool>,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Source {
        let code = blank(text);
        let mut test_lines = vec![is_test_path(path); text.lines().count() + 1];
        for (first, last) in test_items(&code) {
            test_lines[first..=last].fill(true);
        }
        Source { path: path.to_owned(), text: text.to_owned(), code, test_lines }
    }

    /// Lines of code from 1, with what they say.
    pub fn code_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code.lines().enumerate().map(|(index, line)| (index + 1, line))
    }

    pub fn is_test_line(&self, line: usize) -> bool {
        self.test_lines.get(line - 1).copied().unwrap_or(false)
    }

    pub fn is_test(&self) -> bool {
        self.test_lines.iter().all(|is_test| *is_test)
    }

    /// `dfs-mount` of `dfs-mount/src/vfs.rs`; `None` outside the crates' `src`.
    pub fn krate(&self) -> Option<&str> {
        self.path.split_once("/src/").map(|(krate, _)| krate)
    }

    /// The module path inside the crate: empty for `lib.rs`, `["bin"]` for a program.
    pub fn module(&self) -> Vec<&str> {
        let inside = self.path.split_once("/src/").map_or("", |(_, inside)| inside);
        if inside.starts_with("bin/") {
            return vec!["bin"];
        }
        let inside = inside.trim_end_matches(".rs").trim_end_matches("/mod");
        inside.split('/').filter(|part| *part != "lib").collect()
    }
}

/// All Rust files, ordered by path; files that only tests declare count as tests.
pub fn load() -> Vec<Source> {
    let mut paths = Vec::new();
    for place in PLACES {
        walk(&root().join(place), &mut paths);
    }
    paths.sort();
    let mut sources: Vec<Source> = paths.iter().map(|path| open(path)).collect();
    let test_modules: BTreeSet<String> = sources.iter().flat_map(test_modules).collect();
    for source in &mut sources {
        let stem = source.path.trim_end_matches(".rs").to_owned();
        if test_modules.iter().any(|module| is_at_or_below(&stem, module)) {
            source.test_lines.fill(true);
        }
    }
    sources
}

fn is_at_or_below(path: &str, top: &str) -> bool {
    path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn open(path: &Path) -> Source {
    let text = fs::read_to_string(path).expect("a listed file can be read as UTF-8");
    let relative = path.strip_prefix(root()).expect("files are listed below the root");
    Source::new(relative.to_str().expect("paths are ASCII"), &text)
}

fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for path in entries.map(|entry| entry.expect("a directory can be listed").path()) {
        if path.is_dir() && !path.ends_with("target") {
            walk(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

/// The directory in which a file's submodules live.
pub fn submodule_dir(path: &str) -> String {
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    match name {
        "lib.rs" | "main.rs" | "mod.rs" => directory.to_owned(),
        _ => path.trim_end_matches(".rs").to_owned(),
    }
}

/// The modules (as paths without ending) that `source` declares for tests only.
fn test_modules(source: &Source) -> Vec<String> {
    let directory = submodule_dir(&source.path);
    let tokens = tokens(&source.code);
    let declared = tokens.windows(3).filter(|window| {
        window[0].1 == "mod" && window[2].1 == ";" && source.is_test_line(window[0].0)
    });
    declared.map(|window| format!("{directory}/{}", window[1].1)).collect()
}

fn is_test_path(path: &str) -> bool {
    path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("/tests.rs")
}

/// First and last line (from 0) of each item that only tests compile.
fn test_items(code: &str) -> Vec<(usize, usize)> {
    let mut items = Vec::new();
    for attribute in ["#[cfg(test)]", "#[cfg(all(test,"] {
        for (start, _) in code.match_indices(attribute) {
            let end = item_end(code, start + attribute.len());
            items.push((line_of(code, start), line_of(code, end)));
        }
    }
    items
}

fn line_of(code: &str, offset: usize) -> usize {
    code[..offset].matches('\n').count()
}

/// Where the item that begins at `start` ends: its semicolon or its closing brace.
fn item_end(code: &str, start: usize) -> usize {
    let mut depth = 0;
    for (offset, byte) in code.bytes().enumerate().skip(start) {
        match byte {
            b';' if depth == 0 => return offset,
            b'{' => depth += 1,
            b'}' if depth <= 1 => return offset,
            b'}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

/// Words, `::` and single marks of code, each with its line (from 1).
pub fn tokens(code: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let (mut line, mut at) = (1, 0);
    while let Some(byte) = code.as_bytes().get(at) {
        let length = match byte {
            b'\n' => {
                line += 1;
                0
            }
            byte if byte.is_ascii_whitespace() => 0,
            byte if is_word(*byte) => code[at..].bytes().take_while(|byte| is_word(*byte)).count(),
            b':' if code[at..].starts_with("::") => 2,
            _ => code[at..].chars().next().map_or(1, char::len_utf8),
        };
        if length > 0 {
            found.push((line, &code[at..at + length]));
        }
        at += length.max(1);
    }
    found
}

pub fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Whether `word` (which may hold `::` and `!`) stands in `line` on its own.
pub fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(start, _)| {
        let before = line[..start].bytes().next_back();
        let after = line[start + word.len()..].bytes().next();
        let ends_open = word.bytes().next_back().is_some_and(|byte| !is_word(byte));
        !before.is_some_and(is_word) && (ends_open || !after.is_some_and(is_word))
    })
}

/// Replaces comments and the insides of string and character literals by spaces.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let (skip, end, tail) = literal(bytes, at);
        out[at + skip..(end - tail).max(at + skip)]
            .iter_mut()
            .filter(|byte| **byte != b'\n')
            .for_each(|byte| *byte = b' ');
        at = end;
    }
    String::from_utf8(out).expect("whole characters are blanked")
}

/// What begins at `at`: bytes to keep of its head, its end, bytes to keep of its tail.
fn literal(bytes: &[u8], at: usize) -> (usize, usize, usize) {
    let rest = &bytes[at..];
    let follows_word = at > 0 && is_word(bytes[at - 1]);
    if rest.starts_with(b"//") {
        let length = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        return (0, at + length, 0);
    }
    if rest.starts_with(b"/*") {
        return (0, at + block_comment(rest), 0);
    }
    if let Some(hashes) = raw_string_hashes(rest).filter(|_| !follows_word) {
        let close: Vec<u8> = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
        let head = rest.iter().position(|byte| *byte == b'"').map_or(rest.len(), |quote| quote + 1);
        let body = rest[head..].windows(close.len()).position(|window| window == close);
        let end = body.map_or(rest.len(), |body| head + body + close.len());
        return (head, at + end, close.len());
    }
    match rest[0] {
        b'"' => (1, at + quoted(rest, b'"'), 1),
        b'\'' if is_char_literal(rest) => (1, at + quoted(rest, b'\''), 1),
        _ => (1, at + 1, 0),
    }
}

/// The number of `#` of the raw string that begins here, if one does.
fn raw_string_hashes(rest: &[u8]) -> Option<usize> {
    let rest = rest.strip_prefix(b"b").or(rest.strip_prefix(b"c")).unwrap_or(rest);
    let rest = rest.strip_prefix(b"r")?;
    let hashes = rest.iter().take_while(|byte| **byte == b'#').count();
    (rest.get(hashes) == Some(&b'"')).then_some(hashes)
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] if depth == 1 => return at + 2,
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    rest.len()
}

fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// A character and not a lifetime: an escape, or one character and the closing quote.
fn is_char_literal(rest: &[u8]) -> bool {
    let width = match rest.get(1) {
        Some(b'\\') => return true,
        Some(lead) if *lead >= 0xf0 => 4,
        Some(lead) if *lead >= 0xe0 => 3,
        Some(lead) if *lead >= 0xc0 => 2,
        _ => 1,
    };
    rest.get(1 + width) == Some(&b'\'')
}

#[test]
fn comments_and_literals_are_blanked_and_code_is_not() {
    let text = "let a = \"x // y\\\" z\"; // tail\n/* a /* b */ c */ f('\\'', 'q', &'a b);\n";
    let code = blank(text);
    assert_eq!(code.len(), text.len());
    assert_eq!(code.matches('\n').count(), 2);
    assert!(code.starts_with("let a = \"") && code.contains("f(") && code.contains("&'a b"));
    assert!(!code.contains('y') && !code.contains('z') && !code.contains("tail"), "{code}");
    assert!(!code.contains('c') && !code.contains('q'), "{code}");
    let raw = blank("r#\"in \"side\"# + br\"x\" + for_r + \"\"");
    assert_eq!(raw, "r#\"        \"# + br\" \" + for_r + \"\"");
}

#[test]
fn test_modules_and_test_items_are_marked() {
    let text = "fn a() {}\n#[cfg(test)]\nuse x::y;\nfn b() {}\n#[cfg(test)]\nmod tests {\n}\n";
    let source = Source::new("dfs-proto/src/a.rs", text);
    let marked: Vec<usize> = (1..=7).filter(|line| source.is_test_line(*line)).collect();
    assert_eq!(marked, [2, 3, 5, 6, 7]);
    assert!(Source::new("dfs-proto/src/a/tests.rs", "fn a() {}\n").is_test());
    let parent = Source::new("dfs-proto/src/a.rs", "#[cfg(test)]\nmod fixture;\nmod real;\n");
    assert_eq!(test_modules(&parent), ["dfs-proto/src/a/fixture"]);
}

#[test]
fn words_are_found_whole() {
    assert!(has_word("a.unwrap(); libc::close(1)", "libc"));
    assert!(!has_word("my_libc::close(1)", "libc") && !has_word("libcx", "libc"));
    assert!(has_word("println!(\"\")", "println!") && !has_word("eprintln!(\"\")", "println!"));
}

#[test]
fn module_paths_follow_file_paths() {
    let module = |path| Source::new(path, "").module().join("::");
    assert_eq!(module("dfs-mount/src/lib.rs"), "");
    assert_eq!(module("dfs-mount/src/vfs/lookup.rs"), "vfs::lookup");
    assert_eq!(module("dfs-mount/src/bin/dfs.rs"), "bin");
}
