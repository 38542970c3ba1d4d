//! Programs that are not ours, on loopback and ended with the value that holds them. A test that lacks one says so and
//! is skipped, or fails where FLEETUNE_REQUIRE_LAB is set, as in `make test`.

use sha2::Digest as _;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// The folder with this test's scripts and the list of packages that they need.
fn scripts() -> PathBuf {
    Path::new(env!("FLEETUNE_ROOT")).join("worker/tests/python")
}

fn cache() -> PathBuf {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    var("FLEETUNE_CACHE")
        .or_else(|| var("XDG_CACHE_HOME").map(|dir| dir.join("fleetune")))
        .or_else(|| var("HOME").map(|home| home.join(".cache/fleetune")))
        .unwrap()
}

fn absent<T>(what: &str) -> Option<T> {
    assert!(std::env::var_os("FLEETUNE_REQUIRE_LAB").is_none(), "{what}");
    eprintln!("skipped: {what}");
    None
}

/// A Python with the packages of `tests/python/requirements.txt`.
pub struct Python(PathBuf);

impl Python {
    /// The one in the cache, if it was made from the list as it is now.
    pub fn find() -> Option<Self> {
        let folder = cache().join("tests-venv");
        let wanted = std::fs::read(scripts().join("requirements.txt")).unwrap();
        let stamp = std::fs::read_to_string(folder.join("requirements.sha256")).unwrap_or_default();
        if stamp == hex::encode(sha2::Sha256::digest(wanted)) {
            return Some(Self(folder.join("bin/python")));
        }
        absent("no Python with the packages of the tests: run `make tools`")
    }

    /// A command that runs one of the scripts.
    pub fn script(&self, name: &str) -> Command {
        let mut command = Command::new(&self.0);
        command.arg("-B").arg(scripts().join(name));
        command
    }

    /// A web server on the files of a folder.
    pub fn web(&self, folder: &Path) -> Server {
        let mut command = Command::new(&self.0);
        command
            .args(["-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory"])
            .arg(folder);
        Server::start(&mut command)
    }
}

/// What a command wrote; it must have ended with this code.
pub fn run(command: &mut Command, code: i32) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert_eq!(status.code(), Some(code), "{command:?}\n{stdout}\n{stderr}");
    stdout.into_owned()
}

/// A server that says on its first line of output where it listens, and ends with this value.
pub struct Server {
    child: Child,
    /// That line.
    pub said: String,
}

impl Server {
    /// Starts it and waits for its first line.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        output.read_line(&mut said).unwrap();
        Self { child, said }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The registry that most people run.
pub struct Registry {
    child: Child,
    /// Host and port.
    pub host: String,
    _dir: tempfile::TempDir,
}

impl Registry {
    /// Starts the one in the cache.
    pub fn start() -> Option<Self> {
        let program = cache().join("bin/docker-registry");
        if !program.is_file() {
            return absent(&format!("{} is not there: run `make tools`", program.display()));
        }
        let dir = tempfile::tempdir().unwrap();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let host = socket.local_addr().unwrap().to_string();
        drop(socket);
        let config = dir.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{host}'}}\n",
            dir.path().display()
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new(program)
            .arg("serve")
            .arg(config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self { child, host, _dir: dir };
        let start = std::time::Instant::now();
        while std::net::TcpStream::connect(&registry.host).is_err() {
            assert!(start.elapsed().as_secs() < 60, "the registry does not listen");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Some(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
