//! What documents must say, compared with what the sources say.

use std::collections::{BTreeMap, BTreeSet};

use super::rules::Finding;
use super::source::{Source, tokens};

/// One operation of the protocol, as its request type declares it.
#[derive(Debug, PartialEq, Eq)]
pub struct Operation {
    pub path: String,
    /// `Public`, `User`, `Admin` or `Node`.
    pub access: String,
    pub mutates: bool,
}

/// The operations that a protocol source declares: `rpc!(...)` and `impl StreamRpc`.
pub fn operations(source: &Source) -> Vec<Operation> {
    let mut found = Vec::new();
    let calls = source.code.match_indices("rpc!(").map(|(start, head)| start + head.len());
    for start in calls {
        let end = source.code[start..].find(");").map_or(source.code.len(), |end| start + end);
        found.extend(operation(&source.text[start..end]));
    }
    let head = "const PATH: &'static str = \"";
    for (start, _) in source.text.match_indices(head) {
        let rest = &source.text[start + head.len()..];
        let access = rest.split_once("Access::").map_or("", |(_, access)| access);
        let word = access.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or("");
        let path = rest.split('"').next().unwrap_or("").to_owned();
        found.push(Operation { path, access: word.to_owned(), mutates: false });
    }
    found
}

/// Reads `Request => Reply, "service.operation", Access, mutates`.
fn operation(arguments: &str) -> Option<Operation> {
    let (_, rest) = arguments.split_once('"')?;
    let (path, rest) = rest.split_once('"')?;
    let mut words = rest.split(',').map(str::trim).filter(|word| !word.is_empty());
    let access = words.next()?.to_owned();
    Some(Operation { path: path.to_owned(), access, mutates: words.next() == Some("mutates") })
}

/// Names and codes of all errors, from the match in `FsError::code`.
pub fn error_codes(text: &str) -> BTreeMap<String, u16> {
    let arms = text.lines().filter_map(|line| {
        let (pattern, code) = line.trim().strip_prefix("FsError::")?.split_once(" => ")?;
        let name = pattern.split(|c: char| !c.is_ascii_alphanumeric()).next()?;
        Some((name.to_owned(), code.trim_end_matches(',').parse().ok()?))
    });
    arms.collect()
}

/// The variants of an enum, in order, with their lines; those that clap hides are left out.
pub fn variants<'a>(code: &'a str, name: &str) -> Vec<(usize, &'a str)> {
    let tokens = tokens(code);
    let start = tokens.windows(2).position(|pair| pair[0].1 == "enum" && pair[1].1 == name);
    let Some(start) = start else {
        return Vec::new();
    };
    let (mut depth, mut found, mut is_next) = (0, Vec::new(), true);
    for (line, word) in &tokens[start + 2..] {
        match *word {
            "{" | "(" | "[" => depth += 1,
            "}" if depth == 1 => break,
            "}" | ")" | "]" => depth -= 1,
            "," if depth == 1 => is_next = true,
            "hide" if is_next => is_next = false,
            word if depth == 1 && is_next && word.starts_with(char::is_alphabetic) => {
                found.push((*line, word));
                is_next = false;
            }
            _ => {}
        }
    }
    found
}

/// Cells of the Markdown table rows whose first cell is in back quotes, by that cell.
pub fn table_rows(document: &str) -> BTreeMap<&str, Vec<&str>> {
    let rows = document.lines().filter_map(|line| {
        let cells = line.trim().strip_prefix('|')?.strip_suffix('|')?.split('|').map(str::trim);
        let mut cells = cells.collect::<Vec<&str>>();
        let key = cells.remove(0).strip_prefix('`')?.strip_suffix('`')?;
        Some((key, cells))
    });
    rows.collect()
}

/// Compares PROTOCOL.md's operation tables (`path`, who, `once` if it mutates, meaning).
pub fn undocumented_operations(declared: &[Operation], document: &str) -> Vec<Finding> {
    let rows = table_rows(document);
    let mut found = Vec::new();
    for operation in declared {
        let once = if operation.mutates { "once" } else { "" };
        let expected = format!("| `{}` | {} | {once} |", operation.path, operation.access);
        let cells = rows.get(operation.path.as_str());
        let is_right = cells.is_some_and(|cells| cells.starts_with(&[&operation.access, once]));
        if !is_right {
            found.push(format!("PROTOCOL.md needs a row that begins `{expected}`"));
        }
    }
    let is_declared = |path: &str| declared.iter().any(|operation| operation.path == path);
    let paths = rows.keys().filter(|key| is_operation_path(key));
    found.extend(
        paths
            .filter(|path| !is_declared(path))
            .map(|path| format!("PROTOCOL.md describes `{path}`, which no request declares")),
    );
    found
}

fn is_operation_path(key: &str) -> bool {
    let is_word = |part: &str| part.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    key.split_once('.').is_some_and(|(service, operation)| is_word(service) && is_word(operation))
}

/// Compares PROTOCOL.md's error table (`Name`, code, meaning, what a client does).
pub fn undocumented_errors(codes: &BTreeMap<String, u16>, document: &str) -> Vec<Finding> {
    let rows = table_rows(document);
    let mut found = Vec::new();
    for (name, code) in codes {
        let cells = rows.get(name.as_str());
        if cells.and_then(|cells| cells.first()) != Some(&code.to_string().as_str()) {
            found.push(format!("PROTOCOL.md needs a row that begins `| `{name}` | {code} |`"));
        }
    }
    let is_error = |cells: &[&str]| cells.first().is_some_and(|cell| cell.parse::<u16>().is_ok());
    for (name, _) in rows.iter().filter(|(_, cells)| is_error(cells)) {
        if !codes.contains_key(*name) {
            found.push(format!("PROTOCOL.md describes `{name}`, which is no variant of FsError"));
        }
    }
    found
}

/// Compares PROTOCOL.md's limits (`NAME`, value as the source writes it, meaning).
pub fn undocumented_limits(text: &str, document: &str) -> Vec<Finding> {
    let rows = table_rows(document);
    let mut found = Vec::new();
    for (name, value) in constants(text) {
        let expected = format!("`{value}`");
        let is_right = rows.get(name).is_some_and(|cells| cells.first() == Some(&&*expected));
        if !is_right {
            found.push(format!("PROTOCOL.md needs a row that begins `| `{name}` | {expected} |`"));
        }
    }
    found
}

/// Compares the promises of SEMANTICS.md (`- R1. ...`) with its table of tests (`| R1 | `test` |`),
/// and that with the names of the functions there are.
pub fn untested_promises(document: &str, tests: &BTreeSet<&str>) -> Vec<Finding> {
    let lines = || document.lines().map(str::trim);
    let promised = lines().filter_map(|line| line.strip_prefix("- ")?.split_once(". "));
    let promised: Vec<&str> = promised.map(|(id, _)| id).filter(|id| is_promise(id)).collect();
    let rows = lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" | "));
    let rows: Vec<(&str, &str)> = rows.filter(|(id, _)| is_promise(id)).collect();
    let listed: Vec<&str> = rows.iter().map(|(id, _)| *id).collect();
    let mut found = Vec::new();
    if promised != listed {
        found.push(format!("SEMANTICS.md promises {promised:?} and names tests of {listed:?}"));
    }
    for (id, cell) in rows {
        let names: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
        if names.is_empty() {
            found.push(format!("SEMANTICS.md: no test of {id}"));
        }
        let unknown = names.into_iter().filter(|name| !tests.contains(name));
        found.extend(unknown.map(|name| format!("SEMANTICS.md, {id}: there is no test `{name}`")));
    }
    found
}

/// Compares the errno values that the sources of the client's FUSE side name with the table of
/// SEMANTICS.md (`ERRNO`, cause, tests), and that with the names of the functions there are.
pub fn undocumented_errnos(
    named: &BTreeSet<&str>,
    document: &str,
    tests: &BTreeSet<&str>,
) -> Vec<Finding> {
    let rows = table_rows(document);
    let expected = "| cause | `test` |";
    let missing = named.iter().filter(|errno| !rows.contains_key(**errno));
    let mut found: Vec<Finding> = missing
        .map(|errno| format!("SEMANTICS.md needs a row that begins `| `{errno}` {expected}`"))
        .collect();
    for (errno, cells) in rows.iter().filter(|(key, _)| is_errno(key)) {
        let names: Vec<&str> = match cells[..] {
            [_, tests] => tests.split('`').skip(1).step_by(2).collect(),
            _ => Vec::new(),
        };
        if names.is_empty() {
            found.push(format!("SEMANTICS.md: no test of {errno}"));
        }
        let unknown = names.into_iter().filter(|name| !tests.contains(name));
        found.extend(unknown.map(|name| format!("SEMANTICS.md, {errno}: no test `{name}`")));
    }
    found
}

/// The errno values that code names, as `Errno::E...` or `libc::E...`.
pub fn errnos(source: &Source) -> Vec<&str> {
    let lines = source.code_lines().filter(|(number, _)| !source.is_test_line(*number));
    let pairs = lines.flat_map(|(_, line)| {
        ["Errno::", "libc::"].into_iter().flat_map(move |path| line.split(path).skip(1))
    });
    let words = pairs.map(|rest| rest.split(|c: char| !c.is_ascii_alphanumeric()).next());
    words.flatten().filter(|word| is_errno(word)).collect()
}

/// `E` and more capital letters.
fn is_errno(word: &str) -> bool {
    word.len() > 2 && word.starts_with('E') && word.bytes().all(|byte| byte.is_ascii_uppercase())
}

/// The names of the test functions in a source.
pub fn tests(code: &str) -> Vec<&str> {
    let attributes = code.split("#[").filter(|rest| {
        let path = rest.split(['(', ']']).next().unwrap_or("");
        path == "test" || path.ends_with("::test")
    });
    attributes.filter_map(|rest| rest.split_once("fn ")?.1.split('(').next()).collect()
}

/// A capital letter and a number.
fn is_promise(id: &str) -> bool {
    let mut bytes = id.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_uppercase())
        && bytes.len() > 0
        && bytes.all(|byte| byte.is_ascii_digit())
}

/// Names and values of the public constants of a source.
pub fn constants(text: &str) -> Vec<(&str, &str)> {
    let lines = text.lines().filter_map(|line| {
        let (name, rest) = line.strip_prefix("pub const ")?.split_once(':')?;
        Some((name, rest.split_once(" = ")?.1.trim_end_matches(';')))
    });
    lines.collect()
}

/// The subcommands of the first enum in `source` that derives clap's `Subcommand`.
pub fn subcommands(source: &Source) -> Vec<String> {
    let Some((before, after)) = source.code.split_once("Subcommand)]") else {
        return Vec::new();
    };
    let Some((_, declaration)) = after.split_once("enum ") else {
        return Vec::new();
    };
    let name = declaration.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or("");
    // Lines are counted from the file's first, so what stands before is blanked, not cut.
    let skipped = "\n".repeat(before.matches('\n').count());
    let code = skipped + &source.code[before.len()..];
    let named = variants(&code, name).into_iter();
    named.map(|(line, name)| given_name(source, line).unwrap_or_else(|| kebab(name))).collect()
}

/// The `name = "..."` in the attributes right above a variant.
fn given_name(source: &Source, line: usize) -> Option<String> {
    let lines: Vec<&str> = source.text.lines().take(line - 1).collect();
    let above = lines.iter().rev().map(|line| line.trim());
    let attributes = above.take_while(|line| line.starts_with("#[") || line.starts_with("///"));
    let (_, rest) = attributes.filter_map(|line| line.split_once("(name = \"")).next()?;
    Some(rest.split('"').next()?.to_owned())
}

/// `MountDfs` as clap writes it: `mount-dfs`.
fn kebab(name: &str) -> String {
    let mut text = String::new();
    for (index, letter) in name.chars().enumerate() {
        if index > 0 && letter.is_uppercase() {
            text.push('-');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

#[test]
fn operations_are_read_from_macros_and_streams() {
    let text = "rpc!(Map => CellMap, \"admin.map\", Public);\nrpc!(\n    A => (),\n    \
                \"auth.a\",\n    Admin,\n    mutates\n);\nimpl StreamRpc for S {\n    \
                const PATH: &'static str = \"s.t\";\n    const ACCESS: Access = Access::Node;\n}";
    let found = operations(&Source::new("dfs-proto/src/a.rs", text));
    let seen: Vec<_> =
        found.iter().map(|o| (o.path.as_str(), o.access.as_str(), o.mutates)).collect();
    assert_eq!(
        seen,
        [("admin.map", "Public", false), ("auth.a", "Admin", true), ("s.t", "Node", false)]
    );
}

#[test]
fn a_missing_wrong_or_invented_row_is_found() {
    let declared = vec![Operation { path: "a.b".into(), access: "User".into(), mutates: true }];
    let check = |document: &str| undocumented_operations(&declared, document).len();
    assert_eq!(check("| `a.b` | User | once | does b |"), 0);
    assert_eq!(check("| `a.b` | User | | does b |"), 1);
    assert_eq!(check("| `a.b` | Node | once | does b |"), 1);
    assert_eq!(check("| `a.b` | User | once | b |\n| `a.c` | User | | c |"), 1);
    let codes = error_codes("FsError::NotFound => 1,\n  FsError::Fenced { .. } => 21,\n");
    assert_eq!(codes.len(), 2);
    let check = |document: &str| undocumented_errors(&codes, document).len();
    assert_eq!(check("| `NotFound` | 1 | x | y |\n| `Fenced` | 21 | x | y |"), 0);
    assert_eq!(check("| `NotFound` | 2 | x | y |\n| `Gone` | 3 | x | y |"), 3);
    let limits = "/// Doc.\npub const A_MAX: usize = 4 << 20;\nconst B: u8 = 1;\n";
    assert_eq!(undocumented_limits(limits, "| `A_MAX` | `4 << 20` | x |").len(), 0);
    assert_eq!(undocumented_limits(limits, "| `A_MAX` | `4 << 10` | x |").len(), 1);
}

#[test]
fn promises_without_an_existing_test_are_found() {
    let code = "fn a() {}\n#[test]\nfn it_holds() {}\n#[cfg(test)]\nfn b() {}";
    let functions = BTreeSet::from_iter(tests(code));
    assert_eq!(functions, BTreeSet::from(["it_holds"]));
    let document = |rows: &str| format!("- R1. One.\n  more. And\n- R2. Two.\n\n{rows}\n");
    let whole = document("| R1 | `it_holds` |\n| R2 | `it_holds`, `it_holds` |");
    assert!(untested_promises(&whole, &functions).is_empty());
    for rows in [
        "| R1 | `it_holds` |",
        "| R1 | `it_holds` |\n| R2 | |",
        "| R1 | `it` |\n| R2 | `it_holds` |",
    ] {
        assert_eq!(untested_promises(&document(rows), &functions).len(), 1, "{rows}");
    }
}

#[test]
fn variants_and_subcommands_are_read_from_enums() {
    let text = "\n#[derive(Debug, Subcommand)]\npub enum Verb {\n    \
                #[command(alias = \"l\")]\n    Ls(LsArgs),\n    WhoAmI { a: u8, b: Vec<u8> },\n    \
                #[error(\"x, y\")]\n    Cat,\n    #[command(name = \"rm\")]\n    Remove,\n    \
                #[command(hide = true)]\n    Daemon(Args),\n    PutAll\n}";
    let source = Source::new("dfs-mount/src/cli.rs", text);
    let names: Vec<&str> = variants(&source.code, "Verb").iter().map(|(_, name)| *name).collect();
    assert_eq!(names, ["Ls", "WhoAmI", "Cat", "Remove", "PutAll"]);
    assert_eq!(subcommands(&source), ["ls", "who-am-i", "cat", "rm", "put-all"]);
    assert!(variants(&source.code, "Other").is_empty());
}

#[test]
fn an_errno_without_a_row_or_with_an_unknown_test_is_found() {
    let text = "fn a() { f(Errno::ENOENT, libc::EKEYEXPIRED); Errno::from_i32(libc::EIO); }\n\
                #[cfg(test)]\nmod tests {\n    const X: i32 = libc::EXDEV;\n}\n";
    let source = Source::new("dfs-mount/src/fuse/errno.rs", text);
    let named = BTreeSet::from_iter(errnos(&source));
    assert_eq!(named, BTreeSet::from(["EIO", "EKEYEXPIRED", "ENOENT"]));
    let tests = BTreeSet::from(["it_fails"]);
    let row = |errno: &str, test: &str| format!("| `{errno}` | cause | {test} |\n");
    let check = |rows: &[String]| undocumented_errnos(&named, &rows.concat(), &tests).len();
    let [a, b, c] = ["EIO", "EKEYEXPIRED", "ENOENT"].map(|errno| row(errno, "`it_fails`"));
    assert_eq!(check(&[a.clone(), b.clone(), c]), 0);
    assert_eq!(check(&[a.clone(), b.clone()]), 1);
    assert_eq!(check(&[a.clone(), b.clone(), row("ENOENT", "")]), 1);
    assert_eq!(check(&[a, b, row("ENOENT", "`it_does_not`")]), 1);
}
