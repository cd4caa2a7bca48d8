//! Networks of a test's own, with the metadata service at its real address, where the host allows them.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use nix::sched::{CloneFlags, setns};

/// Makes the network, then runs the test in it.
const ALONE: &str = r#"ip link set lo up && ip addr add 169.254.169.254/32 dev lo || exit 99
exec "$@""#;

/// Says that this process is the one in the network.
const APART: &str = "APPLIANCE_TEST_NETWORK";

/// What a test binary ends with when a test has failed.
const FAILED: i32 = 101;

/// Runs `test` in a process and a network of its own that has the address of the metadata service.
/// `name` is the test's own, as the test binary lists it. Where the host allows no network, says so; on
/// a machine that tests changes (`CI=true`) that is a failure.
pub fn alone(name: &str, test: impl FnOnce()) {
    if std::env::var_os(APART).is_some() {
        return test();
    }
    let this = std::env::current_exe().expect("the path of this test binary");
    let output = Command::new("unshare")
        .args(["--net", "sh", "-c", ALONE, "sh"])
        .arg(this)
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(APART, "1")
        .output();
    let (code, said) = match output {
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said).into_owned();
            (output.status.code(), said)
        }
        Err(error) => (None, error.to_string()),
    };
    match code {
        Some(0) => assert!(
            said.contains("1 passed"),
            "no test is called {name}: {said}"
        ),
        Some(FAILED) => panic!("{said}"),
        _ => {
            let must = std::env::var("CI").is_ok_and(|value| value == "true");
            assert!(!must, "no network of its own: {said}");
            eprintln!("skipped: the host allows no network of its own: {said}");
        }
    }
}

/// Two more networks beside that of the caller, one behind the other: a host that forwards, and one
/// that is a hop further away, as a container is.
#[derive(Debug)]
pub struct Container {
    keepers: [Child; 2],
}

/// A network that lasts until its input ends.
const KEEPER: &str = "echo up; read -r _";

impl Container {
    /// Makes them. For a test that runs [`alone`].
    ///
    /// # Errors
    /// The host does not allow it.
    pub fn behind_a_host() -> io::Result<Self> {
        let keepers = [keeper()?, keeper()?];
        let [host, container] = [keepers[0].id(), keepers[1].id()];
        let made = Self { keepers };
        let script = format!(
            "set -e
            at() {{ nsenter --net=/proc/$1/ns/net sh -c \"$2\"; }}
            ip link add here type veth peer name there netns {host}
            ip addr add 10.77.1.1/24 dev here && ip link set here up
            at {host} 'ip link add inside type veth peer name outside netns {container}
              ip addr add 10.77.1.2/24 dev there && ip link set there up
              ip addr add 10.77.2.2/24 dev inside && ip link set inside up
              echo 1 > /proc/sys/net/ipv4/ip_forward'
            at {container} 'ip addr add 10.77.2.3/24 dev outside && ip link set outside up
              ip route add default via 10.77.2.2'
            at {host} 'ip route add default via 10.77.1.1'
            ip route add 10.77.2.0/24 via 10.77.1.2"
        );
        let output = Command::new("sh").args(["-c", &script]).output()?;
        match output.status.success() {
            true => Ok(made),
            false => Err(io::Error::other(
                String::from_utf8_lossy(&output.stderr).into_owned(),
            )),
        }
    }

    /// Does something on the host that forwards.
    pub fn on_the_host<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        within(self.keepers[0].id(), what)
    }

    /// Does something in the container.
    pub fn inside<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        within(self.keepers[1].id(), what)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        for keeper in &mut self.keepers {
            drop(keeper.stdin.take());
            keeper.wait().ok();
        }
    }
}

/// A process in a network of its own.
fn keeper() -> io::Result<Child> {
    let mut child = Command::new("unshare")
        .args(["--net", "sh", "-c", KEEPER])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    let out = child.stdout.take().expect("its output is a pipe");
    BufReader::new(out).read_line(&mut line)?;
    Ok(child)
}

/// Does something on a thread in the network of a process.
fn within<T: Send>(pid: u32, what: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            let network = File::open(format!("/proc/{pid}/ns/net")).expect("the process is there");
            setns(network, CloneFlags::CLONE_NEWNET).expect("the network can be entered");
            what()
        });
        there.join().expect("it does not panic there")
    })
}
