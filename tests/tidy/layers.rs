//! Who may import whom: the import table as data, and the edges that the sources really have.
//!
//! Modules are judged by their first name inside the crate. Tests may import anything.

use super::source::{Source, tokens};

/// The layers of one crate.
pub struct Layers {
    pub krate: &'static str,
    /// The crate as its program names it.
    lib: &'static str,
    /// From the top down: a module may import every module of the tiers below its own.
    tiers: &'static [&'static [&'static str]],
    /// Whether modules of one tier may import each other.
    siblings: bool,
    /// Edges that the tiers forbid: the module, and the path at or below which it may import.
    /// Each is argued beside it.
    argued: &'static [(&'static str, &'static str)],
}

pub const LAYERS: [Layers; 3] = [
    Layers {
        krate: "dfs-proto",
        lib: "dfs_proto",
        tiers: &[
            &["client"],
            &["manifest", "capability", "directory", "lock", "auth", "file", "session", "admin"],
            &["path"],
            // Below the services: each request implements `Rpc`, and what is signed is encoded.
            &["rpc", "codec"],
            &[
                "id",
                "name",
                "attr",
                "dirent",
                "version",
                "chunk",
                "clock",
                "lease",
                "error",
                "limits",
                "credential",
                "permission",
                "promise",
                "range",
                "xattr",
            ],
        ],
        siblings: true,
        // A refusal carries its cause, in the words of the module that judged it.
        argued: &[("error", "capability::CapabilityFault")],
    },
    Layers {
        krate: "dfs-mount",
        lib: "dfs_mount",
        tiers: &[
            // Doubles for tests see everything and are seen by tests only.
            &["bin", "testing"],
            &["cli"],
            &["fuse", "control"],
            &["vfs"],
            &["fetch", "writeback"],
            &["cache", "lease", "placement", "watch"],
            &["session"],
            &["credential", "config", "metrics", "sys"],
        ],
        siblings: false,
        argued: &[
            // The single upward edge: events, no calls.
            ("session", "cache::promise"),
            ("session", "fuse::notify"),
            ("session", "watch"),
        ],
    },
    Layers {
        krate: "dfs-server",
        lib: "dfs_server",
        tiers: &[
            &["bin"],
            &["cli"],
            &["server"],
            &["rpc"],
            &["directory", "lock", "auth", "file", "admin"],
            &["session", "owner", "placement", "ledger"],
            &["meta", "chunk_store"],
            &["cell", "config", "credential", "metrics", "background"],
            &["durable_file", "request", "secret"],
        ],
        siblings: false,
        argued: &[],
    },
];

/// An import as it stands in a file.
#[derive(Debug, PartialEq, Eq)]
pub struct Edge {
    pub line: usize,
    /// The path inside the crate: `["meta", "txn", "Txn"]`.
    pub target: Vec<String>,
}

impl Layers {
    pub fn knows(&self, module: &str) -> bool {
        self.tier(module).is_some()
    }

    fn tier(&self, module: &str) -> Option<usize> {
        self.tiers.iter().position(|tier| tier.contains(&module))
    }

    /// What is wrong with an import of `target` by `from`, and what to do about it.
    pub fn judge(&self, from: &str, target: &[String]) -> Option<String> {
        let to = target.first().map_or("", String::as_str);
        if from == to || from.is_empty() {
            return None;
        }
        let (Some(from_tier), Some(to_tier)) = (self.tier(from), self.tier(to)) else {
            return Some(format!(
                "`{from}` imports `{to}`, and one of the two is no module of the import table: \
                 name the module where the item lives, or give a new module its tier in \
                 tests/tidy/layers.rs"
            ));
        };
        let is_sibling = from_tier == to_tier && self.siblings;
        if from_tier < to_tier || is_sibling || self.is_argued(from, target) {
            return None;
        }
        let direction = if from_tier == to_tier { "sideways" } else { "upward" };
        Some(format!(
            "`{from}` imports `{}` {direction}: move what both need below them, pass it in, or \
             (between services) call through dfs_proto::client",
            target.join("::")
        ))
    }

    fn is_argued(&self, from: &str, target: &[String]) -> bool {
        let target = target.join("::");
        self.argued.iter().any(|(module, path)| {
            let rest = target.strip_prefix(path);
            *module == from && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        })
    }

    /// The imports between modules of this crate that `source` makes outside tests.
    pub fn edges(&self, source: &Source) -> Vec<Edge> {
        let mut reader = Reader {
            tokens: tokens(&source.code),
            at: 0,
            module: source.module().into_iter().map(str::to_owned).collect(),
            depth: 0,
            inline: Vec::new(),
            found: Vec::new(),
        };
        reader.read(self.lib);
        reader.found.retain(|edge| !source.is_test_line(edge.line) && !edge.target.is_empty());
        reader.found
    }
}

/// Reads paths out of tokens, knowing in which module it is.
struct Reader<'a> {
    tokens: Vec<(usize, &'a str)>,
    at: usize,
    module: Vec<String>,
    depth: usize,
    /// The brace depths at which inline modules began.
    inline: Vec<usize>,
    found: Vec<Edge>,
}

impl<'a> Reader<'a> {
    fn peek(&self, ahead: usize) -> &'a str {
        self.tokens.get(self.at + ahead).map_or("", |token| token.1)
    }

    fn read(&mut self, lib: &str) {
        while self.at < self.tokens.len() {
            let follows_path = self.at > 0 && self.tokens[self.at - 1].1 == "::";
            let starts_path = self.peek(1) == "::" && !follows_path;
            match self.peek(0) {
                "mod" if self.peek(2) == "{" => self.enter(),
                "{" => self.depth += 1,
                "}" => self.leave(),
                word if starts_path && (word == "crate" || word == lib) => {
                    self.at += 2;
                    self.path(Vec::new());
                    continue;
                }
                "self" | "super" if starts_path => {
                    self.path(self.module.clone());
                    continue;
                }
                _ => {}
            }
            self.at += 1;
        }
    }

    fn enter(&mut self) {
        self.module.push(self.peek(1).to_owned());
        self.inline.push(self.depth);
        self.depth += 1;
        self.at += 2;
    }

    fn leave(&mut self) {
        self.depth = self.depth.saturating_sub(1);
        if self.inline.last() == Some(&self.depth) {
            self.inline.pop();
            self.module.pop();
        }
    }

    /// Reads the rest of a path or use tree whose beginning is `path`; ends behind it.
    fn path(&mut self, mut path: Vec<String>) {
        let line = self.tokens.get(self.at).map_or(0, |token| token.0);
        loop {
            match self.peek(0) {
                "{" => return self.group(&path),
                "super" => _ = path.pop(),
                "self" => {}
                "*" => path.push("*".to_owned()),
                word if is_name(word) => path.push(word.to_owned()),
                _ => break,
            }
            self.at += 1;
            if self.peek(0) != "::" {
                break;
            }
            self.at += 1;
        }
        self.found.push(Edge { line, target: path });
    }

    fn group(&mut self, path: &[String]) {
        self.at += 1;
        while self.at < self.tokens.len() && self.peek(0) != "}" {
            match self.peek(0) {
                "," => self.at += 1,
                "as" => self.at += 2,
                word if is_name(word) || matches!(word, "*" | "{") => self.path(path.to_vec()),
                _ => self.at += 1,
            }
        }
        self.at += 1;
    }
}

fn is_name(word: &str) -> bool {
    word.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
}

/// The names of the modules that `code` declares in files of their own, with their lines.
pub fn declared_modules(code: &str) -> Vec<(usize, String)> {
    let tokens = tokens(code);
    let declared = tokens.windows(3).filter(|window| window[0].1 == "mod" && window[2].1 == ";");
    declared.map(|window| (window[0].0, window[1].1.to_owned())).collect()
}

#[cfg(test)]
fn targets(path: &str, text: &str) -> Vec<String> {
    let layers = LAYERS.iter().find(|layers| path.starts_with(layers.krate));
    let edges = layers.expect("a crate of ours").edges(&Source::new(path, text));
    edges.into_iter().map(|edge| edge.target.join("::")).collect()
}

#[test]
fn imports_are_found_in_groups_bodies_and_macros() {
    let text = "use crate::{a::{self, B as C}, d::*};\nfn f() { crate::e::g::<u8>(); }\n\
                macro_rules! m { () => { $crate::h::i } }\nuse std::crate_like::x;\n";
    let found = targets("dfs-server/src/cell/ca.rs", text);
    assert_eq!(found, ["a", "a::B", "d::*", "e::g", "h::i"]);
}

#[test]
fn super_and_self_are_resolved_against_the_module_they_stand_in() {
    let text = "use super::k::X;\nuse super::super::meta;\nmod in_line {\n use super::Y;\n}\n\
                use self::z::W;\nuse super::V;\n";
    let found = targets("dfs-server/src/cell/ca.rs", text);
    let expected = ["cell::k::X", "meta", "cell::ca::Y", "cell::ca::z::W", "cell::V"];
    assert_eq!(found, expected);
}

#[test]
fn a_program_imports_its_library_by_name_and_tests_do_not_count() {
    assert_eq!(
        targets("dfs-mount/src/bin/dfs.rs", "fn main() { dfs_mount::cli::run() }"),
        ["cli::run"]
    );
    let text = "#[cfg(test)]\nmod tests {\n    use crate::fuse::X;\n}\n";
    assert!(targets("dfs-mount/src/vfs.rs", text).is_empty());
}

#[test]
fn upward_and_sideways_imports_are_refused_and_argued_ones_allowed() {
    let judge = |krate: usize, from: &str, to: &str| {
        let target: Vec<String> = to.split("::").map(str::to_owned).collect();
        LAYERS[krate].judge(from, &target)
    };
    assert!(judge(1, "vfs", "cache::attr").is_none());
    assert!(judge(1, "cache", "vfs").expect("refused").contains("upward"));
    assert!(judge(1, "fetch", "writeback").expect("refused").contains("sideways"));
    assert!(judge(1, "session", "cache::promise::Break").is_none());
    assert!(judge(1, "session", "cache::promised").is_some());
    assert!(judge(2, "directory", "file").is_some());
    assert!(judge(2, "novelty", "meta").expect("refused").contains("import table"));
    assert!(judge(0, "attr", "rpc").is_some());
}
