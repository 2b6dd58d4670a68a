//! The stack that all tests of this process share: started by the first, taken down when the
//! process exits.
//!
//! ```text
//! <target>/tmp/stacks.lock                 held while folders of dead test processes are swept
//! <target>/tmp/stack-<pid>-<name>/         one stack, and the folders of the tests that use it
//! <target>/tmp/stack-<pid>-<name>/owner    locked as long as its test process lives
//! ```

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use tally_stack::{Progress, Stack, StackArgs};

use crate::ports::free_port;
use crate::sys::at_exit;

static SHARED: OnceLock<Result<Stack, String>> = OnceLock::new();
static CLAIM: OnceLock<Claim> = OnceLock::new();

/// The stack of this process.
///
/// # Panics
/// If it does not start, with the reason.
pub(crate) fn shared() -> &'static Stack {
    match SHARED.get_or_init(|| start().map_err(|error| error.to_string())) {
        Ok(stack) => stack,
        Err(reason) => panic!("the local stack that the tests need does not start: {reason}"),
    }
}

/// Arguments for a stack in `dir`, on ports that are free now.
pub(crate) fn args(dir: PathBuf) -> StackArgs {
    StackArgs {
        dir,
        broker_port: free_port(),
        controller_port: Some(free_port()),
        registry_port: free_port(),
        store_port: free_port(),
        program: Some(PathBuf::from(env!("CARGO_BIN_EXE_tally"))),
    }
}

/// As [`args`], for the command line.
pub(crate) fn options(args: &StackArgs) -> Vec<String> {
    let mut options = vec![String::from("--dir"), args.dir.display().to_string()];
    let ports = [
        ("--broker-port", Some(args.broker_port)),
        ("--controller-port", args.controller_port),
        ("--registry-port", Some(args.registry_port)),
        ("--store-port", Some(args.store_port)),
    ];
    for (option, port) in ports {
        options.extend(port.into_iter().flat_map(|port| [option.to_owned(), port.to_string()]));
    }
    options
}

fn start() -> Result<Stack, Box<dyn std::error::Error>> {
    let claim = CLAIM.get_or_init(|| Claim::new("shared"));
    at_exit(take_down_shared);
    let args = args(claim.dir.clone());
    // It does not run on the runtime of the test that happens to come first: the stack outlives it.
    let starting = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime
            .expect("the system gives a runtime")
            .block_on(tally_stack::up(&args, &Progress::auto()))
    });
    Ok(starting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?)
}

/// What is static is not dropped.
extern "C" fn take_down_shared() {
    if let Some(claim) = CLAIM.get() {
        claim.take_down();
    }
}

/// A folder for a stack that is this process's: whoever finds it unlocked may take the stack down.
pub(crate) struct Claim {
    pub(crate) dir: PathBuf,
    _lock: File,
}

impl Claim {
    /// # Panics
    /// If the folder cannot be made, or what a dead test process left cannot be taken down.
    pub(crate) fn new(name: &str) -> Claim {
        Claim::make(name)
            .unwrap_or_else(|error| panic!("make a folder for the stack `{name}`: {error}"))
    }

    fn make(name: &str) -> io::Result<Claim> {
        let home = Path::new(env!("CARGO_TARGET_TMPDIR"));
        fs::create_dir_all(home)?;
        let sweeping = File::create(home.join("stacks.lock"))?;
        sweeping.lock()?;
        sweep(home)?;
        let dir = home.join(format!("stack-{}-{name}", std::process::id()));
        fs::create_dir(&dir)?;
        let lock = File::create(dir.join("owner"))?;
        lock.lock()?;
        Ok(Claim { dir, _lock: lock })
    }

    fn take_down(&self) {
        if let Err(error) = take_down(&self.dir) {
            eprintln!("take down the stack in {}: {error}", self.dir.display());
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.take_down();
    }
}

/// Takes down the stacks whose test process is gone.
fn sweep(home: &Path) -> io::Result<()> {
    for entry in fs::read_dir(home)? {
        let dir = entry?.path();
        let is_stack =
            dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with("stack-"));
        if !is_stack {
            continue;
        }
        let lock = File::create(dir.join("owner"))?;
        match lock.try_lock() {
            Ok(()) => take_down(&dir)?,
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(())
}

/// Stops what a stack's record says that it started, wherever it listens, and removes its folder.
fn take_down(dir: &Path) -> io::Result<()> {
    let down = Command::new(env!("CARGO_BIN_EXE_tally"))
        .args(["local", "down", "--dir"])
        .arg(dir)
        .stdin(Stdio::null())
        .output()?;
    if !down.status.success() {
        let said = String::from_utf8_lossy(&down.stderr);
        return Err(io::Error::other(format!("`tally local down`: {}: {said}", down.status)));
    }
    fs::remove_dir_all(dir)
}
