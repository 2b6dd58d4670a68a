//! How each part of the stack is; changes nothing.

use std::{
    fmt,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use comfy_table::{ContentArrangement, Table, presets};
use futures_util::future::join_all;
use indicatif::HumanDuration;
use tokio::{net::TcpStream, time::timeout};

use super::{
    Part, Stack, StackArgs,
    part::http_client,
    state::{Record, StateFile},
};

const CONNECT_LIMIT: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Status {
    pub parts: Vec<PartStatus>,
}

#[derive(Debug)]
pub struct PartStatus {
    pub part: Part,
    pub condition: Condition,
    pub address: SocketAddr,
    /// Why not, if not; none where there is nobody to ask.
    pub answers: Option<Result<(), String>>,
    /// The version of what runs, as it was when it was started.
    pub version: Option<String>,
    pub data: PathBuf,
    pub uptime: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    Running {
        pid: u32,
    },
    Stopped,
    /// Somebody listens at its address whom this stack did not start.
    NotOurs,
}

impl Status {
    /// Every part was started by this stack, runs, and answers.
    pub fn is_up(&self) -> bool {
        self.parts.iter().all(|part| {
            matches!(part.condition, Condition::Running { .. })
                && matches!(part.answers, Some(Ok(())))
        })
    }
}

pub async fn status(args: &StackArgs) -> anyhow::Result<Status> {
    let stack = Stack::new(args)?;
    let state = StateFile::open(&stack.dir)?;
    let http = http_client()?;
    let parts =
        Part::ALL.into_iter().map(|part| look_at(part, &stack, state.get(part.name()), &http));
    let parts = join_all(parts).await.into_iter().collect::<Result<_, _>>()?;
    Ok(Status { parts })
}

async fn look_at(
    part: Part,
    stack: &Stack,
    record: Option<Record>,
    http: &reqwest::Client,
) -> anyhow::Result<PartStatus> {
    let alive = match record {
        Some(record) => record.process.is_alive()?.then_some(record),
        None => None,
    };
    let address = alive.as_ref().map_or(part.address(stack), |record| record.address);
    let condition = match &alive {
        Some(record) => Condition::Running { pid: record.process.pid },
        None if listens(address).await => Condition::NotOurs,
        None => Condition::Stopped,
    };
    let answers = match condition {
        Condition::Stopped => None,
        Condition::Running { .. } | Condition::NotOurs => {
            Some(part.probe(address, http).await.map_err(|reason| reason.to_string()))
        }
    };
    Ok(PartStatus {
        part,
        condition,
        address,
        answers,
        uptime: alive.as_ref().and_then(|record| uptime(record, SystemTime::now())),
        version: alive.map(|record| record.version),
        data: stack.data(part),
    })
}

async fn listens(address: SocketAddr) -> bool {
    matches!(timeout(CONNECT_LIMIT, TcpStream::connect(address)).await, Ok(Ok(_)))
}

/// How long it has been running; not known when the clock was set back since.
fn uptime(record: &Record, now: SystemTime) -> Option<Duration> {
    now.duration_since(UNIX_EPOCH + Duration::from_secs(record.started_at_s)).ok()
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY);
        table.set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(["part", "state", "address", "answers", "version", "up for", "data"]);
        for part in &self.parts {
            table.add_row([
                part.part.to_string(),
                match part.condition {
                    Condition::Running { pid } => format!("runs (pid {pid})"),
                    Condition::Stopped => "stopped".to_owned(),
                    Condition::NotOurs => "not ours".to_owned(),
                },
                part.address.to_string(),
                match &part.answers {
                    None => "-".to_owned(),
                    Some(Ok(())) => "yes".to_owned(),
                    Some(Err(reason)) => format!("no: {reason}"),
                },
                part.version.clone().unwrap_or_else(|| "-".to_owned()),
                part.uptime
                    .map_or_else(|| "-".to_owned(), |uptime| HumanDuration(uptime).to_string()),
                part.data.display().to_string(),
            ]);
        }
        table.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_stranger_on_a_port_is_not_ours_and_the_others_are_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let stranger = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let args = StackArgs {
            dir: folder.path().to_owned(),
            // Ports below 1024 that nothing listens on.
            broker_port: 1,
            controller_port: None,
            registry_port: stranger.local_addr().unwrap().port(),
            store_port: 4,
            program: None,
        };
        let hang_up = async {
            loop {
                drop(stranger.accept().await.unwrap());
            }
        };
        let status = tokio::select! {
            status = status(&args) => status.unwrap(),
            () = hang_up => unreachable!("it never ends"),
        };
        let conditions: Vec<_> = status.parts.iter().map(|part| part.condition).collect();
        assert_eq!(conditions, [Condition::Stopped, Condition::NotOurs, Condition::Stopped]);
        assert!(matches!(status.parts[1].answers, Some(Err(_))), "{status:?}");
        assert!(!status.is_up());
        let table = status.to_string();
        assert!(table.contains("not ours") && table.contains("127.0.0.1:4"), "{table}");
    }

    #[test]
    fn a_clock_that_was_set_back_gives_no_uptime() {
        let record = Record {
            process: super::super::process::Identity {
                pid: 1,
                start_ticks: 1,
                boot_id: String::new(),
            },
            address: "127.0.0.1:1".parse().unwrap(),
            version: String::new(),
            started_at_s: 1000,
        };
        assert_eq!(
            uptime(&record, UNIX_EPOCH + Duration::from_secs(1060)),
            Some(Duration::from_secs(60))
        );
        assert_eq!(uptime(&record, UNIX_EPOCH + Duration::from_secs(999)), None);
    }
}
