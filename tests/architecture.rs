//! What ARCHITECTURE.md promises of the folders: who may depend on whom, what the pure crates do
//! without, and how wide a line is. Nothing is started; it takes a second.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use serde_json::Value;

const SERVICES: [&str; 5] =
    ["tally-producer", "tally-aggregator", "tally-sink", "tally-reader", "tally-reconciler"];
const PURE: [&str; 2] = ["schemas", "counts"];
/// Crates of I/O, async runtimes and clocks, by what their names begin with.
const IMPURE_CRATES: [&str; 22] = [
    "tokio",
    "async",
    "futures",
    "smol",
    "mio",
    "polling",
    "socket2",
    "hyper",
    "reqwest",
    "http",
    "axum",
    "tower",
    "rdkafka",
    "clickhouse",
    "libc",
    "rustix",
    "chrono",
    "jiff",
    "time",
    "quanta",
    "tempfile",
    "tracing",
];
/// The same in the standard library: modules, and types of `std::time`.
const IMPURE_MODULES: [&str; 6] = ["fs", "net", "thread", "env", "process", "os"];
const CLOCKS: [&str; 2] = ["Instant", "SystemTime"];

const WIDTH: usize = 100;
/// The names of tests are sentences, and rustfmt does not break a name.
const TEST_NAME: &str = "async fn a_lost_block_that_the_log_has_not_either_stops_its_partition";
const CHECKED_FOR_WIDTH: [&str; 5] = ["rs", "py", "sh", "sql", "toml"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn output(command: &mut Command) -> String {
    let output = command.current_dir(root()).output().expect("the command starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).expect("it prints UTF-8")
}

/// `cargo metadata`, of this platform only: others' crates need not be downloaded.
static METADATA: LazyLock<Value> = LazyLock::new(|| {
    let rustc = output(Command::new("rustc").arg("-vV"));
    let host = rustc.lines().find_map(|line| line.strip_prefix("host: ")).expect("rustc's host");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--format-version", "1", "--locked", "--filter-platform", host]);
    serde_json::from_str(&output(&mut cargo)).expect("cargo prints JSON")
});

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} is a text"))
}

fn list<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value[key].as_array().unwrap_or_else(|| panic!("{key} is a list"))
}

/// A crate of this workspace.
struct Member<'m> {
    name: &'m str,
    is_of_lab: bool,
    features: &'m Value,
    dependencies: &'m [Value],
}

impl<'m> Member<'m> {
    fn all(metadata: &'m Value) -> Vec<Member<'m>> {
        let is_member =
            |package: &&Value| list(metadata, "workspace_members").contains(&package["id"]);
        let member = |package: &'m Value| Member {
            name: text(package, "name"),
            is_of_lab: Path::new(text(package, "manifest_path")).starts_with(root().join("lab")),
            features: &package["features"],
            dependencies: list(package, "dependencies"),
        };
        list(metadata, "packages").iter().filter(is_member).map(member).collect()
    }

    /// What it is built with, normally or by a build script.
    fn built_with(&self) -> impl Iterator<Item = &'m Value> {
        self.dependencies.iter().filter(|dependency| dependency["kind"] != "dev")
    }

    fn depends_on(&self, name: &str) -> bool {
        self.dependencies.iter().any(|dependency| text(dependency, "name") == name)
    }
}

#[test]
fn what_is_shipped_never_depends_on_the_laboratory() {
    let members = Member::all(&METADATA);
    let lab: BTreeSet<&str> =
        members.iter().filter(|member| member.is_of_lab).map(|member| member.name).collect();
    assert!(lab.contains("tally-lab") && lab.contains("tally-stack"), "{lab:?}");
    for member in members.iter().filter(|member| !member.is_of_lab) {
        let of_lab: Vec<&Value> = member
            .built_with()
            .filter(|dependency| lab.contains(text(dependency, "name")))
            .collect();
        if member.name != "tally" {
            assert!(of_lab.is_empty(), "{} depends on {of_lab:#?}", member.name);
            continue;
        }
        let [door] = of_lab[..] else { panic!("the program depends on {of_lab:#?}") };
        assert_eq!((text(door, "name"), &door["optional"]), ("tally-lab", &Value::Bool(true)));
        let features: BTreeMap<String, Vec<String>> =
            serde_json::from_value(member.features.clone()).expect("features are lists of names");
        let openers: Vec<&String> = features
            .iter()
            .filter(|(_, enabled)| enabled.iter().any(|name| name.contains("tally-lab")))
            .map(|(feature, _)| feature)
            .collect();
        assert_eq!(openers, ["lab"], "the features that bring the laboratory in");
    }
}

#[test]
fn services_do_not_depend_on_each_other_nor_kafka_on_platform() {
    let members = Member::all(&METADATA);
    let member = |name: &str| {
        members.iter().find(|member| member.name == name).unwrap_or_else(|| panic!("no {name}"))
    };
    for service in SERVICES {
        for other in SERVICES.into_iter().filter(|other| *other != service) {
            assert!(!member(service).depends_on(other), "{service} depends on {other}");
        }
    }
    assert!(!member("tally-kafka").depends_on("tally-platform"), "kafka depends on platform");
}

#[test]
fn pure_crates_have_no_crate_of_io_async_or_clocks() {
    let names: BTreeMap<&str, &str> = list(&METADATA, "packages")
        .iter()
        .map(|package| (text(package, "id"), text(package, "name")))
        .collect();
    let nodes: BTreeMap<&str, &Value> =
        list(&METADATA["resolve"], "nodes").iter().map(|node| (text(node, "id"), node)).collect();
    for pure in PURE {
        let start = names.iter().find(|(_, name)| **name == format!("tally-{pure}"));
        let mut open = vec![*start.expect("the crate is there").0];
        let mut seen = BTreeSet::new();
        while let Some(id) = open.pop() {
            if !seen.insert(id) {
                continue;
            }
            let is_impure =
                |name: &str| IMPURE_CRATES.iter().any(|impure| name.starts_with(impure));
            assert!(!is_impure(names[id]), "{pure} depends on {}", names[id]);
            let dependencies = list(nodes[id], "deps").iter().filter(|dependency| {
                list(dependency, "dep_kinds").iter().any(|kind| kind["kind"].is_null())
            });
            open.extend(dependencies.map(|dependency| text(dependency, "pkg")));
        }
        assert!(seen.len() > 3, "{pure} has dependencies: {seen:?}");
    }
}

#[test]
fn pure_crates_use_no_io_thread_or_clock_of_the_standard_library() {
    for pure in PURE {
        let files = tracked(&["rs"], &format!("{pure}/src"));
        assert!(files.len() > 5, "{pure} has sources");
        for file in files.iter().filter(|file| !is_test_file(file)) {
            let source = fs::read_to_string(root().join(file)).expect("a source is UTF-8");
            if let Some(what) = impurity(&source) {
                panic!("{} uses {what}", file.display());
            }
        }
    }
}

fn is_test_file(file: &Path) -> bool {
    file.components().any(|part| {
        let name = part.as_os_str();
        name == "tests" || name == "tests.rs"
    })
}

/// What the code before a file's tests uses of what is not pure.
fn impurity(source: &str) -> Option<String> {
    let code: String = source
        .split("#[cfg(test)]\nmod tests {")
        .next()?
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| [line, "\n"])
        .collect();
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let words: Vec<&str> = code.split(|c| !is_word(c)).filter(|word| !word.is_empty()).collect();
    let used = code.match_indices("std::").flat_map(|(at, path)| {
        let rest = code[at + path.len()..].trim_start();
        let end = match rest.strip_prefix('{') {
            // A list of imports: each name in it counts, however deep.
            Some(_) => rest.find(';').unwrap_or(rest.len()),
            None => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
        };
        rest[..end].split(|c| !is_word(c)).collect::<Vec<_>>()
    });
    let mut used =
        used.filter(|name| IMPURE_MODULES.contains(name)).map(|name| format!("std::{name}"));
    used.next()
        .or_else(|| words.iter().find(|word| CLOCKS.contains(word)).map(|word| word.to_string()))
}

#[test]
fn impurity_is_seen_however_it_is_imported() {
    for (source, found) in [
        ("use std::fs::File;", Some("std::fs")),
        ("use std::{collections::BTreeMap, net::SocketAddr};", Some("std::net")),
        ("use std::{\n    fmt,\n    thread,\n};", Some("std::thread")),
        ("let home = std::env::var(\"HOME\");", Some("std::env")),
        ("fn now() -> Instant { time::Instant::now() }", Some("Instant")),
        ("use std::fmt;\n// std::fs is not here\n#[cfg(test)]\nmod tests {\n use std::fs;", None),
        ("use std::{mem, time::Duration};\nlet at = env!(\"CARGO\");", None),
    ] {
        assert_eq!(impurity(source).as_deref(), found, "{source}");
    }
}

/// The files with these extensions that git tracks.
fn tracked(extensions: &[&str], folder: &str) -> Vec<PathBuf> {
    output(Command::new("git").args(["ls-files", "-z", folder]))
        .split_terminator('\0')
        .map(PathBuf::from)
        .filter(|file| {
            let extension = file.extension().and_then(|extension| extension.to_str());
            extension.is_some_and(|extension| extensions.contains(&extension))
        })
        // One that was deleted and not committed yet is still tracked.
        .filter(|file| root().join(file).exists())
        .collect()
}

#[test]
fn no_line_is_wider_than_100_characters() {
    let mut wide = Vec::new();
    for file in tracked(&CHECKED_FOR_WIDTH, ".") {
        let content = fs::read_to_string(root().join(&file)).expect("a source is UTF-8");
        for (number, line) in (1..).zip(content.lines()) {
            let width = width(line);
            if width > WIDTH && !line.starts_with(TEST_NAME) {
                wide.push(format!("{}:{number}: {width} characters", file.display()));
            }
        }
    }
    assert!(wide.is_empty(), "{} lines are too wide:\n{}", wide.len(), wide.join("\n"));
}

/// Characters of a line; a URL, which cannot be broken, counts nothing.
fn width(line: &str) -> usize {
    let urls = line.split_whitespace().filter(|word| word.contains("://"));
    line.chars().count() - urls.map(|url| url.chars().count()).sum::<usize>()
}
