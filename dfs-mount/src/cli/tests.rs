use super::*;
use clap::CommandFactory;
use clap::error::ErrorKind;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("dfs").chain(line.split_whitespace()))
}

#[test]
fn the_declarations_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn what_is_documented_can_be_typed() {
    let hex = "ab".repeat(32);
    for line in [
        "mount dfs://h:7400/main /mnt",
        "mount dfs://h /mnt -o ro,allow_other -o cache_size=1G --foreground",
        "mount dfs://h/v /mnt --cache-dir /c --cache-size 10G --timeout 5s",
        "mount dfs://h/v /mnt --lock-timeout 1m --hard",
        "mount dfs://h/v /mnt --read-only --allow-other --default-permissions --log-file /l",
        "umount /mnt",
        "umount /mnt --timeout 5s --force",
        "login --bootstrap /data/bootstrap.toml",
        "login dfs://h:7400 --user ann",
        "login h --user ann --ca ca.pem",
        &format!("login dfs://h --user ann --fingerprint {hex}"),
        "logout",
        "logout dfs://h",
        "whoami --json",
        "--json whoami dfs://h",
        "ls dfs://h/main",
        "ls -l dfs://h/main/a /mnt/b",
        "cat dfs://h/main/a",
        "put a b dfs://h/main/dir",
        "put -r --overwrite dir dfs://h/main",
        "get dfs://h/main/a .",
        "get --recursive dfs://h/main here",
        "mkdir -p dfs://h/main/a/b /mnt/c",
        "rm -rf dfs://h/main/a",
        "rm --recursive --force /mnt/a /mnt/b",
        "mv a b dfs://h/main/dir",
        "stat dfs://h/main/a",
        "where dfs://h/main/a --json",
        "lock dfs://h/main/a --json",
        "admin lock list --cell dfs://h",
        "admin lock break dfs://h/main/a --yes",
        "outbox list",
        "outbox retry /mnt",
        "status",
        "status /mnt --json",
        "serve --data /d --listen 127.0.0.1:7400",
        "serve --help",
        "passwd",
        "passwd dfs://h --stdin",
        "admin user add ann",
        "admin user add ann --uid 1000 --group 5 --group 6 --admin --stdin --cell dfs://h",
        "admin user list --json",
        "admin user list --cell dfs://h",
        "admin user remove ann --yes --cell dfs://h",
        "admin user passwd ann --stdin",
        "admin token new --roles file",
        "admin token new --roles auth,lock --cell dfs://h",
    ] {
        if let Err(error) = parse(line) {
            panic!("{line}: {error}");
        }
    }
}

#[test]
fn what_cannot_be_meant_is_wrong_usage_and_names_the_value() {
    for (line, named) in [
        ("", "Usage"),
        ("fly", "fly"),
        ("mount dfs://h/v", "<DIR>"),
        ("mount /dev/sda /mnt", "/dev/sda"),
        ("mount dfs://h:x/v /mnt", "`x` is not a port"),
        ("mount dfs://h/v/deep /mnt", "a path inside the volume"),
        ("mount dfs://h/v /mnt --cache-size lots", "`lots` is not a size"),
        ("mount dfs://h/v /mnt --bogus", "--bogus"),
        ("umount", "<DIR>"),
        ("umount /mnt --timeout soon", "`soon` is not a time"),
        ("login", "--bootstrap"),
        ("login --bootstrap b --user u", "--user"),
        ("login dfs://h --bootstrap b", "--bootstrap"),
        ("login dfs://h --fingerprint abc", "`abc` is not a fingerprint"),
        ("login dfs://h --password x", "--password"),
        ("ls", "PATH"),
        ("put a", "SRC... DEST"),
        ("get dfs://h/v/a", "SRC... DEST"),
        ("mkdir", "PATH"),
        ("rm -r", "PATH"),
        ("mv a", "SRC... DEST"),
        ("outbox", "Usage"),
        ("passwd dfs://h old new", "old"),
        ("admin user add", "<NAME>"),
        ("admin user add ann --uid root", "root"),
        ("admin user remove", "<NAME>"),
        ("admin token new", "--roles"),
        ("admin token new --roles cook", "`cook` is not a role"),
    ] {
        let error = parse(line).expect_err(line);
        let text = error.render().to_string();
        assert!(text.contains(named), "{line}: {text}");
        assert!(error.use_stderr() || error.kind() == ErrorKind::DisplayHelp, "{line}");
    }
}

#[test]
fn mount_options_and_flags_mean_the_same() {
    let layer = |line: &str| match parse(&format!("mount dfs://h/v /mnt {line}")).unwrap().command {
        Command::Mount(arguments) => arguments.layer().unwrap(),
        other => panic!("{other:?}"),
    };
    for (options, flags) in [
        ("-o config_dir=/c", "--config-dir /c"),
        ("-o cache_dir=/c,cache_size=1G", "--cache-dir /c --cache-size 1G"),
        ("-o ro,hard", "--read-only --hard"),
        ("-o timeout=5s -o lock_timeout=6s", "--timeout 5s --lock-timeout 6s"),
        ("-o allow_other,default_permissions", "--allow-other --default-permissions"),
        ("-o log_file=/l", "--log-file /l"),
        ("-o timeout=5s --timeout 6s", "--timeout 6s"),
        ("-o rw -o ro", "--read-only"),
    ] {
        assert_eq!(layer(options), layer(flags), "{options}");
    }
}

#[test]
fn serve_passes_everything_on() {
    let Command::Serve(arguments) = parse("serve --data /d --roles all --help").unwrap().command
    else {
        panic!("serve is serve");
    };
    assert_eq!(arguments.arguments, ["--data", "/d", "--roles", "all", "--help"]);
}

#[test]
fn help_lists_every_exit_code() {
    let help = Cli::command().render_help().to_string();
    for exit in Exit::ALL {
        assert!(help.contains(exit.meaning()), "{help}");
    }
}

#[test]
fn no_option_takes_a_password() {
    fn check(command: &clap::Command) {
        for argument in command.get_arguments() {
            let name = argument.get_id().as_str();
            assert!(!name.contains("password") && !name.contains("secret"), "{name}");
        }
        command.get_subcommands().for_each(check);
    }
    check(&Cli::command());
}
