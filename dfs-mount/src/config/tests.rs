use super::*;

fn place() -> Place {
    Place {
        source: "dfs://h:7400/main".parse().unwrap(),
        mount_point: "/mnt/dfs".into(),
        cell_fingerprint: "0123456789abcdef".into(),
        cache_base: "/var/cache/dfs".into(),
        is_root: true,
    }
}

fn meant(raw: RawMount) -> MountConfig {
    MountConfig::mean(raw, place()).unwrap()
}

fn from(variables: &'static [(&'static str, &'static str)]) -> impl Fn(&str) -> Option<OsString> {
    |name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
}

#[test]
fn options_mean_what_mount_8_says_of_them() {
    for (text, expected) in [
        ("", RawMount::default()),
        ("ro", RawMount { read_only: Some(true), ..RawMount::default() }),
        ("ro,rw", RawMount { read_only: Some(false), ..RawMount::default() }),
        ("read-only=no", RawMount { read_only: Some(false), ..RawMount::default() }),
        ("allow_other", RawMount { allow_other: Some(true), ..RawMount::default() }),
        ("allow_other=false", RawMount { allow_other: Some(false), ..RawMount::default() }),
        ("hard", RawMount { hard: Some(true), ..RawMount::default() }),
        ("nosuid,nodev", RawMount { suid: Some(false), dev: Some(false), ..RawMount::default() }),
        ("noexec", RawMount { exec: Some(false), ..RawMount::default() }),
        ("noatime,,", RawMount { atime: Some(false), ..RawMount::default() }),
        (
            "timeout=5s,lock-timeout=1m",
            RawMount {
                timeout: Some(Span(Duration::from_secs(5))),
                lock_timeout: Some(Span(Duration::from_secs(60))),
                ..RawMount::default()
            },
        ),
        (
            r"cache_dir=/a\,b,cache-size=1G",
            RawMount {
                cache_dir: Some("/a,b".into()),
                cache_size: Some(ByteSize(1 << 30)),
                ..RawMount::default()
            },
        ),
        ("defaults,_netdev,x-systemd.automount,comment=mine,nofail", RawMount::default()),
        ("noauto,user=ann,x-initrd.mount,silent,nomand,nousers", RawMount::default()),
    ] {
        assert_eq!(parse_options(text).unwrap(), expected, "{text}");
    }
}

#[test]
fn an_option_that_is_not_taken_is_named() {
    for (text, message) in [
        ("ro,bogus", "option `bogus` is not known"),
        ("bogus=1", "option `bogus` is not known"),
        ("password=x", "option `password` is not known"),
        ("remount,ro", "option `remount` is not known"),
        ("nosymfollow", "option `nosymfollow` is not known"),
        ("ro=1", "option `ro` takes no value"),
        ("cache_size", "option `cache_size` needs a value"),
        ("cache_dir=", "option `cache_dir` needs a value"),
        ("cache_size=lots", "`lots` is not a size"),
        ("timeout=soon", "`soon` is not a time"),
        ("allow_other=maybe", "takes true or false, not `maybe`"),
    ] {
        let error = parse_options(text).unwrap_err().to_string();
        assert!(error.contains(message), "{text}: {error}");
    }
}

#[test]
fn a_sloppy_mount_drops_what_is_not_known_and_nothing_else() {
    for (text, left) in [
        ("bogus,ro,colour=red,timeout=1s", "ro,timeout=1s"),
        (r"cache_dir=/a\,b,sync", r"cache_dir=/a\,b"),
        ("timeout=soon,bogus", "timeout=soon"),
        ("bogus", ""),
    ] {
        assert_eq!(known_options(text), left, "{text}");
    }
}

#[test]
fn flags_win_over_environment_over_file_over_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let text = "[mount]\ncache_size = \"1G\"\ntimeout = \"1s\"\nlock_timeout = \"1s\"\n";
    std::fs::write(dir.path().join(CONFIG_FILE), text).unwrap();
    let environment =
        from(&[("DFS_MOUNT_OPTIONS", "timeout=2s,lock_timeout=2s"), ("DFS_CACHE_SIZE", "2G")]);
    let file = file_layer(dir.path()).unwrap();
    let flags = parse_options("lock_timeout=3s").unwrap();
    let layers = file.overlaid_by(environment_layer(&environment).unwrap()).overlaid_by(flags);
    let config = meant(layers);
    assert_eq!(config.cache_bytes_max, 2 << 30);
    assert_eq!(config.patience, Patience::Soft(Duration::from_secs(2)));
    assert_eq!(config.lock_timeout, Duration::from_secs(3));
    assert!(!config.read_only);
}

#[test]
fn every_field_of_the_upper_layer_wins() {
    let full = |flag: bool, number: u64| RawMount {
        config_dir: Some(number.to_string().into()),
        cache_dir: Some(number.to_string().into()),
        cache_size: Some(ByteSize(number)),
        log_file: Some(number.to_string().into()),
        read_only: Some(flag),
        allow_other: Some(flag),
        default_permissions: Some(flag),
        hard: Some(flag),
        timeout: Some(Span(Duration::from_secs(number))),
        lock_timeout: Some(Span(Duration::from_secs(number))),
        suid: Some(flag),
        dev: Some(flag),
        exec: Some(flag),
        atime: Some(flag),
    };
    assert_eq!(full(false, 1).overlaid_by(full(true, 2)), full(true, 2));
    assert_eq!(full(false, 1).overlaid_by(RawMount::default()), full(false, 1));
}

#[test]
fn a_missing_file_says_nothing_and_a_broken_one_is_named_with_its_fault() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(file_layer(dir.path()).unwrap(), RawMount::default());
    let path = dir.path().join(CONFIG_FILE);
    for (text, fault) in [
        ("[mount", "unclosed table"),
        ("[mount]\ncolour = 1", "unknown field `colour`"),
        ("[mount]\nconfig_dir = \"/c\"", "unknown field `config_dir`"),
        ("[mound]\n", "unknown field `mound`"),
        ("[mount]\ncache_size = \"10Q\"", "`10Q` is not a size"),
        ("[mount]\nread_only = \"yes\"", "invalid type"),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = file_layer(dir.path()).unwrap_err();
        assert!(error.to_string().contains("dfs.conf"), "{error}");
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains(fault), "{text}: {source}");
    }
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(matches!(file_layer(dir.path()), Err(ConfigError::Unreadable { .. })));
}

#[test]
fn a_bad_environment_variable_is_named() {
    for environment in
        [from(&[("DFS_CACHE_SIZE", "lots")]), from(&[("DFS_MOUNT_OPTIONS", "bogus")])]
    {
        let error = environment_layer(&environment).unwrap_err().to_string();
        assert!(error.contains("DFS_") && (error.contains("lots") || error.contains("bogus")));
    }
}

#[test]
fn the_cache_base_follows_dfs_cache_dir_then_xdg_then_home() {
    let all = from(&[("DFS_CACHE_DIR", "/d"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h")]);
    assert_eq!(cache_base(&all), Path::new("/d"));
    let xdg = from(&[("XDG_CACHE_HOME", "/x"), ("HOME", "/h")]);
    assert_eq!(cache_base(&xdg), Path::new("/x/dfs"));
    assert_eq!(cache_base(&from(&[("HOME", "/h")])), Path::new("/h/.cache/dfs"));
}

#[test]
fn two_mounts_never_share_a_default_cache() {
    let base = meant(RawMount::default()).cache_dir;
    assert!(base.starts_with("/var/cache/dfs"));
    let name = base.file_name().unwrap().to_string_lossy().into_owned();
    assert!(name.starts_with("01234567-main-"), "{name}");
    let elsewhere = Place { mount_point: "/mnt/other".into(), ..place() };
    let other_cell = Place { cell_fingerprint: "ffffffffffff".into(), ..place() };
    let other_volume = Place { source: "dfs://h/v".parse().unwrap(), ..place() };
    for other in [elsewhere, other_cell, other_volume] {
        assert_ne!(MountConfig::mean(RawMount::default(), other).unwrap().cache_dir, base);
    }
}

#[test]
fn root_shares_its_mount_and_others_do_not() {
    let root = meant(RawMount::default());
    assert!(root.allow_other && root.default_permissions && root.suid && !root.dev);
    let place = Place { is_root: false, ..place() };
    let user = MountConfig::mean(RawMount::default(), place).unwrap();
    assert!(!user.allow_other && !user.default_permissions && !user.suid);
}

#[test]
fn a_hard_mount_has_no_limit_and_a_tiny_cache_is_refused() {
    assert_eq!(meant(parse_options("hard,timeout=1s").unwrap()).patience.limit(), None);
    let error = MountConfig::mean(parse_options("cache_size=1M").unwrap(), place()).unwrap_err();
    assert!(error.to_string().contains("1.0 MiB"), "{error}");
}

#[test]
fn the_log_lies_beside_the_cache_directory() {
    let config = meant(parse_options("cache_dir=/c/d").unwrap());
    assert_eq!(config.log_file, Path::new("/c/d.log"));
}
