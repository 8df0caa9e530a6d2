//! The repository's own rules, as tests. Each failure names the file and line, and the remedy.
//!
//! The rules are data in `tidy/`: layers and fences there are the form of the design that a
//! machine reads. A rule that must give way is changed there, with its reason, not worked around.

mod tidy {
    pub mod docs;
    pub mod layers;
    pub mod rules;
    pub mod source;
}

use std::collections::BTreeSet;
use std::path::Path;

use tidy::rules::{FENCES, Fence, Finding, SERVER_PRINTER, UNSAFE};
use tidy::source::{self, Source};
use tidy::{docs, layers, rules};

/// Fails with all findings, one a line.
fn report(findings: &[Finding]) {
    assert!(findings.is_empty(), "\n\n{}\n", findings.join("\n"));
}

/// All sources; fails if there are so few that a rule would hold of nothing.
fn sources() -> Vec<Source> {
    let sources = source::load();
    for krate in ["dfs-proto", "dfs-mount", "dfs-server"] {
        let count = sources.iter().filter(|source| source.krate() == Some(krate)).count();
        assert!(count >= 2, "only {count} sources of {krate} were found");
    }
    assert!(sources.len() >= 30, "only {} sources were found", sources.len());
    sources
}

fn find<'a>(sources: &'a [Source], path: &str) -> &'a Source {
    let found = sources.iter().find(|source| source.path == path);
    found.unwrap_or_else(|| panic!("{path} is not there: does this rule look in the right place?"))
}

fn document(path: &str) -> String {
    source::read(path).unwrap_or_else(|| panic!("{path} is missing"))
}

fn each(rule: impl Fn(&Source) -> Vec<Finding>) {
    report(&sources().iter().flat_map(rule).collect::<Vec<Finding>>());
}

#[test]
fn files_and_lines_are_short() {
    each(rules::sizes);
}

#[test]
fn sources_are_ascii() {
    let mut findings: Vec<Finding> =
        sources().iter().flat_map(|source| rules::not_ascii(&source.path, &source.text)).collect();
    let others = ["Makefile", ".ci/run", "examples/demo.sh", "Cargo.toml", "deny.toml"];
    for path in others {
        findings.extend(rules::not_ascii(path, &document(path)));
    }
    report(&findings);
}

#[test]
fn nothing_is_promised_ignored_or_silenced() {
    each(rules::unfinished);
}

#[test]
fn imports_name_what_they_use() {
    each(rules::globs);
}

#[test]
fn names_say_something() {
    each(rules::names);
}

#[test]
fn modules_import_downwards_only() {
    let sources = sources();
    for layers in &layers::LAYERS {
        let mut edge_count = 0;
        let mut findings = Vec::new();
        let own = sources.iter().filter(|source| source.krate() == Some(layers.krate));
        for source in own.filter(|source| !source.is_test()) {
            let module = source.module();
            let from = module.first().copied().unwrap_or("");
            for edge in layers.edges(source) {
                edge_count += 1;
                let judged = layers.judge(from, &edge.target);
                findings.extend(judged.map(|what| rules::at(source, edge.line, &what)));
            }
        }
        findings.dedup();
        report(&findings);
        let has_modules = declared_in_lib(&sources, layers.krate).len() > 1;
        assert!(edge_count > 0 || !has_modules, "no import was seen in {}", layers.krate);
    }
}

fn declared_in_lib(sources: &[Source], krate: &str) -> Vec<(usize, String)> {
    layers::declared_modules(&find(sources, &format!("{krate}/src/lib.rs")).code)
}

#[test]
fn every_module_has_its_layer() {
    let sources = sources();
    let mut findings = Vec::new();
    for layers in &layers::LAYERS {
        let lib = find(&sources, &format!("{}/src/lib.rs", layers.krate));
        for (line, module) in layers::declared_modules(&lib.code) {
            if !layers.knows(&module) {
                let what = format!("module `{module}` has no tier in tests/tidy/layers.rs");
                findings.push(rules::at(lib, line, &what));
            }
        }
    }
    report(&findings);
}

#[test]
fn client_and_server_do_not_know_each_other() {
    let foreign = [
        ("dfs-proto", ["dfs_mount", "dfs_server"]),
        ("dfs-mount", ["dfs_server", "dfs_server"]),
        ("dfs-server", ["dfs_mount", "dfs_mount"]),
    ];
    let sources = sources();
    let mut findings = Vec::new();
    for (krate, words) in foreign {
        let manifest = document(&format!("{krate}/Cargo.toml"));
        for word in words {
            let dependency = word.replace('_', "-");
            if manifest.lines().any(|line| line.starts_with(&dependency)) {
                findings.push(format!("{krate}/Cargo.toml: depends on {dependency}"));
            }
        }
        for source in sources.iter().filter(|source| source.krate() == Some(krate)) {
            let lines = source
                .code_lines()
                .filter(|(_, line)| words.iter().any(|word| source::has_word(line, word)));
            let what = "the crates meet in dfs-proto only; a test of both belongs in tests/";
            findings.extend(lines.map(|(number, _)| rules::at(source, number, what)));
        }
    }
    report(&findings);
}

#[test]
fn third_parties_stay_behind_their_fences() {
    let sources = sources();
    let mut findings = Vec::new();
    for fence in FENCES.iter().chain([&UNSAFE]) {
        let fenced = sources.iter().filter(|source| source.krate().is_some());
        findings.extend(fenced.flat_map(|source| fence.breaches(source)));
        findings.extend(idle(fence, &sources));
    }
    report(&findings);
}

/// A fence round a crate that nobody inside names is a fence in the wrong place.
fn idle(fence: &Fence, sources: &[Source]) -> Option<Finding> {
    let manifest = document("Cargo.toml");
    let is_dependency = manifest.lines().any(|line| {
        fence.words.iter().any(|word| line.split_once(" = ").is_some_and(|(name, _)| name == *word))
    });
    let mut inside = sources.iter().filter(|source| fence.allows(&source.path)).peekable();
    let is_idle =
        is_dependency && inside.peek().is_some() && !inside.any(|file| fence.is_used_in(file));
    is_idle.then(|| format!("tests/tidy/rules.rs: nobody inside its fence names {:?}", fence.words))
}

#[test]
fn the_server_prints_one_line_and_one_error() {
    let sources = sources();
    for source in sources.iter().filter(|source| source.path == SERVER_PRINTER) {
        for (stream, writers) in rules::writers(source) {
            let path = &source.path;
            assert!(writers.len() <= 1, "{path}: writes to {stream} in lines {writers:?}; log it");
        }
    }
}

#[test]
fn every_source_is_compiled() {
    let sources = sources();
    let mut declared = BTreeSet::new();
    for source in &sources {
        let directory = source::submodule_dir(&source.path);
        for (_, module) in layers::declared_modules(&source.code) {
            declared.insert(format!("{directory}/{module}.rs"));
            declared.insert(format!("{directory}/{module}/mod.rs"));
        }
    }
    assert!(declared.len() >= 20, "only {} modules are declared", declared.len());
    let inside = sources.iter().filter(|source| source.krate().is_some());
    let modules = inside.filter(|source| {
        !source.path.ends_with("/src/lib.rs") && !source.path.contains("/src/bin/")
    });
    let orphans = modules.filter(|source| !declared.contains(&source.path));
    let what = "no `mod` declares it, so it is not compiled: declare it or remove it";
    report(&orphans.map(|source| rules::at(source, 1, what)).collect::<Vec<Finding>>());
}

/// Most names that a crate's root may hand on from its modules.
const REEXPORTS_MAX: usize = 20;

#[test]
fn roots_hand_on_few_names() {
    let sources = sources();
    for layers in &layers::LAYERS {
        let lib = find(&sources, &format!("{}/src/lib.rs", layers.krate));
        let uses = lib.code.split("pub use ").skip(1).filter_map(|rest| rest.split_once(';'));
        let count: usize = uses.map(|(names, _)| names.split(',').count()).sum();
        let path = &lib.path;
        assert!(count <= REEXPORTS_MAX, "{path}: hands on {count} names; name modules instead");
    }
}

#[test]
fn members_take_versions_from_the_workspace() {
    let mut findings = Vec::new();
    for krate in ["dfs-proto", "dfs-mount", "dfs-server"] {
        let path = format!("{krate}/Cargo.toml");
        let manifest = document(&path);
        let mut is_dependency = false;
        let mut seen = 0;
        for (index, line) in manifest.lines().enumerate() {
            if line.starts_with('[') {
                is_dependency = line.ends_with("dependencies]");
            } else if is_dependency && line.contains('=') {
                seen += 1;
                let is_shared = line.contains("workspace = true") || line.contains("path = \".\"");
                let what = "take the version from [workspace.dependencies]";
                findings.extend((!is_shared).then(|| format!("{path}:{}: {what}", index + 1)));
            }
        }
        assert!(seen > 0, "{path} names no dependency");
    }
    report(&findings);
}

#[test]
fn the_protocol_document_lists_every_operation() {
    let sources = sources();
    let protocol = sources.iter().filter(|source| source.krate() == Some("dfs-proto"));
    let declared: Vec<docs::Operation> =
        protocol.filter(|source| !source.is_test()).flat_map(docs::operations).collect();
    assert!(declared.len() >= 30, "only {} operations were found", declared.len());
    let paths: BTreeSet<&str> = declared.iter().map(|o| o.path.as_str()).collect();
    assert_eq!(paths.len(), declared.len(), "two operations have one path");
    report(&docs::undocumented_operations(&declared, &document("dfs-proto/PROTOCOL.md")));
}

#[test]
fn the_protocol_document_lists_every_error() {
    let sources = sources();
    let error = find(&sources, "dfs-proto/src/error.rs");
    let codes = docs::error_codes(&error.text);
    let variants = docs::variants(&error.code, "FsError");
    assert!(variants.len() >= 30, "only {} errors were found", variants.len());
    let named: BTreeSet<&str> = codes.keys().map(String::as_str).collect();
    let declared: BTreeSet<&str> = variants.into_iter().map(|(_, name)| name).collect();
    assert_eq!(named, declared, "code() and FsError differ");
    let numbers: BTreeSet<&u16> = codes.values().collect();
    assert_eq!(numbers.len(), codes.len(), "two errors have one code");
    report(&docs::undocumented_errors(&codes, &document("dfs-proto/PROTOCOL.md")));
}

#[test]
fn the_protocol_document_lists_every_limit() {
    let limits = document("dfs-proto/src/limits.rs");
    assert!(docs::constants(&limits).len() >= 15, "limits.rs was not understood");
    report(&docs::undocumented_limits(&limits, &document("dfs-proto/PROTOCOL.md")));
}

#[test]
fn every_promise_of_the_semantics_document_names_its_tests() {
    let sources = sources();
    let tests = sources.iter().flat_map(|source| docs::tests(&source.code)).collect();
    report(&docs::untested_promises(&document("dfs-mount/SEMANTICS.md"), &tests));
}

#[test]
fn every_errno_of_the_mount_is_in_the_semantics_document() {
    let sources = sources();
    let tests = sources.iter().flat_map(|source| docs::tests(&source.code)).collect();
    let glue = sources.iter().filter(|source| {
        source.path == "dfs-mount/src/fuse.rs" || source.path.starts_with("dfs-mount/src/fuse/")
    });
    let named: BTreeSet<&str> = glue.flat_map(docs::errnos).collect();
    assert!(named.len() >= 20, "only {} errno values were found", named.len());
    report(&docs::undocumented_errnos(&named, &document("dfs-mount/SEMANTICS.md"), &tests));
}

const README_LINES_MAX: usize = 250;

#[test]
fn the_readme_is_short_and_names_every_command() {
    let readme = document("README.md");
    let count = readme.lines().count();
    assert!((20..=README_LINES_MAX).contains(&count), "README.md has {count} lines");
    let Some(text) = source::read("dfs-mount/src/cli.rs") else {
        return;
    };
    let commands = docs::subcommands(&Source::new("dfs-mount/src/cli.rs", &text));
    assert!(commands.len() >= 5, "dfs-mount/src/cli.rs: subcommands {commands:?} cannot be all");
    let is_missing = |command: &&String| !readme.contains(&format!("`dfs {command}"));
    let missing = commands.iter().filter(is_missing);
    let say = |command| format!("README.md: the commands table has no row for `dfs {command}`");
    report(&missing.map(say).collect::<Vec<Finding>>());
}

#[test]
fn links_in_documents_lead_somewhere() {
    let mut findings = Vec::new();
    for path in ["README.md", "dfs-proto/PROTOCOL.md", "dfs-mount/SEMANTICS.md"] {
        let text = document(path);
        let directory = Path::new(path).parent().unwrap_or(Path::new(""));
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or("");
            let is_local = !target.is_empty() && !target.contains("://");
            if is_local && !source::root().join(directory).join(target).exists() {
                findings.push(format!("{path}: the link to {link} leads nowhere"));
            }
        }
    }
    report(&findings);
}
