//! The JSON face with curl: the session that PROTOCOL.md shows, and files shared with mounts.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;

use crate::support::{
    Client, Holder, Mount, Server, attempt, eventually, program, run, sha256, shell,
};

/// What stands for the part of a line that differs each time.
const ELLIPSIS: &str = "...";

/// A command of the document, and what it prints there.
#[derive(Debug)]
struct Step {
    command: String,
    expected: String,
}

/// The session in the chapter on the JSON face.
fn documented_session() -> Vec<Step> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("dfs-proto/PROTOCOL.md");
    let text = fs::read_to_string(path).unwrap();
    let (_, chapter) = text.split_once("## JSON face\n").expect("the chapter");
    let (_, block) = chapter.split_once("```console\n").expect("a session");
    let (block, _) = block.split_once("```\n").expect("its end");
    let mut steps: Vec<Step> = Vec::new();
    for line in block.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step { command: format!("{command}\n"), expected: String::new() });
            continue;
        }
        let step = steps.last_mut().expect("a command comes first");
        match line.strip_prefix("> ") {
            Some(more) => step.command += &format!("{more}\n"),
            None => step.expected += &format!("{line}\n"),
        }
    }
    steps
}

/// Whether `text` is `expected`, with anything but a line's end where that has an ellipsis.
fn matches(expected: &str, text: &str) -> bool {
    let parts: Vec<&str> = expected.split(ELLIPSIS).collect();
    let (first, rest) = parts.split_first().expect("split gives something");
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let Some((last, middle)) = rest.split_last() else { return text.is_empty() };
    for part in middle {
        let Some(at) = text.find(part).filter(|at| !text[..*at].contains('\n')) else {
            return false;
        };
        text = &text[at + part.len()..];
    }
    text.strip_suffix(last).is_some_and(|masked| !masked.contains('\n'))
}

#[test]
fn what_is_masked_in_a_session_is_one_part_of_a_line() {
    assert!(matches("a\n", "a\n") && !matches("a\n", "b\n") && !matches("a\n", "a\na\n"));
    assert!(matches("v ...;\n", "v 1.2;\n") && !matches("v ...;\n", "v 1\n2;\n"));
    assert!(matches("...,...\n", "1,2\n") && !matches("...,...\n", "12\n"));
    assert!(!matches("", "more\n") && !matches("x ...\n", "y 1\n"));
}

/// A shell that keeps variables from one step to the next.
fn script(steps: &[Step], dir: &Path) -> Vec<String> {
    let mut script = String::new();
    for (index, step) in steps.iter().enumerate() {
        script += &format!("{{ {}}} > {}/{index}.out\n", step.command, dir.display());
    }
    run(Command::new("bash").args(["-uc", &script]).current_dir(dir));
    let read = |index| fs::read_to_string(dir.join(format!("{index}.out"))).unwrap();
    (0..steps.len()).map(read).collect()
}

/// Writes what `POST /v1/login` takes.
fn write_login(path: &Path, user: &str, password: &str) {
    let mut file = fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .unwrap();
    let login = serde_json::json!({ "user": user, "password": password });
    file.write_all(login.to_string().as_bytes()).unwrap();
}

/// Returns when the cell can store files: a mount waits for what is not there yet.
fn settle(mount: &Mount<'_>) {
    mount.shell("echo x > first; rm first");
}

fn bootstrap(server: &Server, key: &str) -> String {
    let text = fs::read_to_string(server.bootstrap()).unwrap();
    let table: toml::Table = text.parse().unwrap();
    table[key].as_str().unwrap().to_owned()
}

/// Row 19 of the scenarios: a plain REST client logs in, lists, asks for attributes, gets and puts.
#[test]
fn the_session_of_the_protocol_does_what_the_document_shows() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let mount = client.mount(&server, &[]);
    settle(&mount);
    let here = dir.path().join("session");
    fs::create_dir(&here).unwrap();
    write_login(&here.join("login.json"), "admin", &bootstrap(&server, "password"));
    let mut steps = documented_session();
    assert!(steps.len() > 20, "{} steps", steps.len());
    let address = steps.iter_mut().find(|step| step.command.starts_with("CELL=")).unwrap();
    address.command = format!("CELL={}\n", server.address);
    let printed = script(&steps, &here);
    for (step, printed) in steps.iter().zip(&printed) {
        assert!(
            matches(&step.expected, printed),
            "{}\ngave: {printed}\nand not: {}",
            step.command,
            step.expected
        );
    }
    let fingerprint = printed.iter().find(|text| text.contains("fingerprint=")).unwrap();
    assert!(fingerprint.contains(&bootstrap(&server, "ca_fingerprint")), "{fingerprint}");
    assert_eq!(mount.shell("ls -A"), "");
    mount.umount();
}

/// A user of the JSON face: curl, with a login.
struct Curl<'a> {
    dir: &'a Path,
    config: String,
}

impl Curl<'_> {
    fn new<'a>(dir: &'a Path, server: &Server, user: &str, password: &str) -> Curl<'a> {
        write_login(&dir.join("login.json"), user, password);
        let ca = server.data.join("cell/ca.pem");
        let basic =
            format!("silent\ncacert = {}\nconnect-to = \"::{}\"\n", ca.display(), server.address);
        let config = format!("{user}.curl");
        fs::write(dir.join(&config), &basic).unwrap();
        let login = format!(
            "curl -K {config} --fail -d @login.json https://cell.dfs/v1/login | jq -r .ticket"
        );
        let ticket = shell(dir, &login);
        let header = format!("{basic}header = \"Authorization: Bearer {}\"\n", ticket.trim());
        fs::write(dir.join(&config), header).unwrap();
        Curl { dir, config }
    }

    /// Status, and what came.
    fn ask(&self, arguments: &[&str], path: &str) -> (u16, Vec<u8>) {
        let url = format!("https://cell.dfs/v1/{path}");
        let mut command = Command::new("curl");
        command.args(["-K", &self.config, "-w", "%{stderr}%{http_code}", "--path-as-is"]);
        let output = attempt(command.args(arguments).arg(url).current_dir(self.dir));
        let status = String::from_utf8_lossy(&output.stderr).trim().parse();
        (status.unwrap_or_else(|_| panic!("{output:?}")), output.stdout)
    }
}

#[test]
fn files_that_curl_puts_are_on_the_mount_and_those_of_the_mount_are_got() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let server = Server::start(&dir.join("data"), &[]);
    let client = Client::new(&dir.join("a"), &server);
    let mount = client.mount(&server, &[]);
    settle(&mount);
    let curl = Curl::new(dir, &server, "admin", &bootstrap(&server, "password"));
    shell(dir, "head -c 20M /dev/urandom > large");

    assert_eq!(curl.ask(&["-T", "large"], "files/main/large").0, 201);
    assert_eq!(sha256(&mount.at("large")), sha256(&dir.join("large")));
    let report = client.ask(&["where", "--json", &server.path("large")]);
    assert!(report.contains("node-1") && report.contains("node-2"), "{report}");

    // An edit on the mount, a hole behind it, and back.
    let file = fs::File::options().write(true).open(mount.at("large")).unwrap();
    file.write_all_at(b"edited on the mount", 7 << 20).unwrap();
    file.set_len(24 << 20).unwrap();
    drop(file);
    let (status, _) = curl.ask(&["-o", "back"], "files/main/large");
    assert_eq!((status, sha256(&dir.join("back"))), (200, sha256(&mount.at("large"))));
    let range = format!("{}-{}", (20 << 20) - 2, (20 << 20) + 1);
    let (status, part) = curl.ask(&["-r", &range], "files/main/large");
    let tail = &fs::read(dir.join("large")).unwrap()[(20 << 20) - 2..];
    assert_eq!((status, part), (206, [tail, &[0, 0]].concat()));

    // A reader on the mount sees the next content with its next open, through a link as well.
    mount.shell("mkdir d; ln -s ../large d/link; printf old > d/f");
    fs::write(dir.join("new"), "new").unwrap();
    assert_eq!(curl.ask(&["-T", "new"], "files/main/d/f").0, 200);
    assert_eq!(mount.shell("cat d/f"), "new");
    assert_eq!(curl.ask(&["-T", "new"], "files/main/d/link").0, 200);
    assert_eq!(mount.shell("cat large; readlink d/link"), "new../large\n");
    mount.umount();
}

/// The number behind `sessions`, wherever it stands.
fn session_count(status: &serde_json::Value) -> u64 {
    match status {
        serde_json::Value::Object(map) => {
            let own = map.get("sessions").and_then(serde_json::Value::as_u64);
            own.unwrap_or(0).max(map.values().map(session_count).max().unwrap_or(0))
        }
        serde_json::Value::Array(all) => all.iter().map(session_count).max().unwrap_or(0),
        _ => 0,
    }
}

#[test]
fn curl_waits_for_a_writer_and_may_do_only_what_its_user_may() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let server = Server::start(&dir.join("data"), &[]);
    let client = Client::new(&dir.join("a"), &server);
    let mount = client.mount(&server, &[]);
    let add = "printf 'correct horse battery\n' | \"$0\" admin user add ann --stdin";
    let mut command = Command::new("bash");
    command.args(["-euc", add]).arg(program("dfs"));
    run(command.env("DFS_CONFIG_DIR", client.home.join("config")));
    mount.shell("umask 077; printf secret > private; mkdir -m 777 open; printf x > open/busy");
    mount.shell("chmod 666 open/busy");
    let curl = Curl::new(dir, &server, "ann", "correct horse battery");

    let (status, answer) = curl.ask(&[], "files/main/private");
    let text = String::from_utf8_lossy(&answer).into_owned();
    assert!(status == 403 && text.contains("\"access-denied\""), "{status} {text}");
    fs::write(dir.join("hers"), "hers").unwrap();
    assert_eq!(curl.ask(&["-T", "hers"], "files/main/private").0, 403);
    assert_eq!(curl.ask(&["-T", "hers"], "files/main/hers").0, 403);
    assert_eq!(curl.ask(&["-T", "hers"], "files/main/open/hers").0, 201);
    let uid = mount.shell("stat -c %u open/hers");
    assert_ne!(uid.trim(), "0");
    assert_eq!(mount.shell("cat private"), "secret");

    // A writer on the mount holds the lock until it closes.
    let writer = Holder::of(&mount.at("open/busy"));
    let (status, answer) = std::thread::scope(|scope| {
        let put = scope.spawn(|| curl.ask(&["-T", "hers"], "files/main/open/busy"));
        eventually("the upload has a session beside the mount's", || {
            let status = client.ask(&["status", "--json", &server.url()]);
            let status: serde_json::Value = serde_json::from_str(&status).unwrap();
            (session_count(&status) >= 2).then_some(())
        });
        assert!(!put.is_finished(), "the lock was not waited for");
        drop(writer);
        put.join().unwrap()
    });
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
    assert_eq!(mount.shell("cat open/busy"), "hers");
    mount.umount();
}

#[test]
fn any_process_of_a_cell_serves_files_and_the_auth_server_logins() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let names = Server::start(&dir.join("names"), &["--roles", "auth,directory,lock"]);
    let client = Client::new(&dir.join("a"), &names);
    let token = client.ask(&["admin", "token", "new", "--roles", "file", "--cell", &names.url()]);
    let join = ["--roles", "file", "--join", token.trim()];
    let files = Server::start(&dir.join("files"), &join);
    let through_names = Curl::new(dir, &names, "admin", &bootstrap(&names, "password"));
    shell(dir, "head -c 3M /dev/urandom > one");
    eventually("the cell comes together", || {
        (through_names.ask(&["-T", "one"], "files/main/one").0 == 201).then_some(())
    });

    let config = fs::read_to_string(dir.join(&through_names.config)).unwrap();
    let config = config.replace(&names.address, &files.address);
    fs::write(dir.join("files.curl"), config).unwrap();
    let through_files = Curl { dir, config: "files.curl".into() };
    let one = fs::read(dir.join("one")).unwrap();
    assert!(through_files.ask(&[], "files/main/one") == (200, one.clone()));
    let two = [&one[..], b"and more"].concat();
    fs::write(dir.join("two"), &two).unwrap();
    assert_eq!(through_files.ask(&["-T", "two"], "files/main/one").0, 200);
    assert!(through_names.ask(&[], "files/main/one") == (200, two));
    let (status, answer) = through_files.ask(&["-d", "@login.json"], "login");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(status == 404 && answer.contains("where the auth role is"), "{status} {answer}");
}
