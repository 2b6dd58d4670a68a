use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::process::Stdio;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::*;

const LONG: Duration = Duration::from_secs(10);
/// Long enough to tell it from no delay, on a busy machine too.
const DELAY: Duration = Duration::from_millis(300);

/// A link to a peer that the test plays itself.
struct Way {
    link: NetworkLink,
    listen: SocketAddr,
    peer: TcpListener,
}

impl Way {
    async fn new() -> Way {
        let peer = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (link, listen) = link_to(peer.local_addr().unwrap()).await;
        Way { link, listen, peer }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.listen).await.unwrap()
    }

    async fn pair(&self) -> (TcpStream, TcpStream) {
        let client = self.connect().await;
        let (peer, _) = timeout(LONG, self.peer.accept()).await.unwrap().unwrap();
        (client, peer)
    }

    async fn until_struck(&self) {
        let struck = async {
            while self.link.struck() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(LONG, struck).await.expect("the mode strikes");
    }
}

fn is_in_use(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::AddrInUse)
}

fn free_address() -> SocketAddr {
    StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

/// Another test may take the port just before.
async fn link_to(target: SocketAddr) -> (NetworkLink, SocketAddr) {
    loop {
        let listen = free_address();
        match NetworkLink::start(&[(listen, target)]).await {
            Ok(link) => return (link, listen),
            Err(error) if is_in_use(&error) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

async fn says(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
}

async fn hears(stream: &mut TcpStream, text: &str) {
    let mut heard = vec![0; text.len()];
    timeout(LONG, stream.read_exact(&mut heard)).await.unwrap().unwrap();
    assert_eq!(String::from_utf8(heard).unwrap(), text);
}

async fn hears_nothing(stream: &mut TcpStream) {
    let mut byte = [0];
    let heard = timeout(DELAY / 2, stream.read(&mut byte)).await;
    assert!(heard.is_err(), "{heard:?}");
}

async fn is_reset(stream: &mut TcpStream) {
    let mut byte = [0];
    let ended = timeout(LONG, stream.read(&mut byte)).await.unwrap();
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

async fn ends(stream: &mut TcpStream) {
    let mut byte = [0];
    assert_eq!(timeout(LONG, stream.read(&mut byte)).await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn an_open_link_passes_everything_on_and_counts_it() {
    let way = Way::new().await;
    let (mut client, mut peer) = way.pair().await;
    says(&mut client, "question").await;
    hears(&mut peer, "question").await;
    says(&mut peer, "answer").await;
    hears(&mut client, "answer").await;
    assert_eq!((way.link.traffic(), way.link.struck()), (14, 0));
    drop(client);
    ends(&mut peer).await;
}

#[tokio::test]
async fn a_peer_that_hangs_up_is_passed_on() {
    let way = Way::new().await;
    let (mut client, mut peer) = way.pair().await;
    says(&mut peer, "bye").await;
    drop(peer);
    hears(&mut client, "bye").await;
    ends(&mut client).await;
}

#[tokio::test]
async fn megabytes_pass_whole_and_in_order() {
    let way = Way::new().await;
    let (mut client, mut peer) = way.pair().await;
    let sent: Vec<u8> = (0..24u32 << 20).map(|at| (at % 251) as u8).collect();
    let mut heard = vec![0; sent.len()];
    let (wrote, read) =
        timeout(LONG, async { tokio::join!(client.write_all(&sent), peer.read_exact(&mut heard)) })
            .await
            .unwrap();
    wrote.unwrap();
    read.unwrap();
    assert!(heard == sent, "bytes were changed or reordered");
}

#[tokio::test]
async fn a_peer_that_is_not_there_resets_its_clients() {
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let (_link, listen) = link_to(nobody).await;
    let mut client = TcpStream::connect(listen).await.unwrap();
    is_reset(&mut client).await;
}

#[tokio::test]
async fn a_cut_link_resets_old_and_new_connections_until_it_opens() {
    let way = Way::new().await;
    let (mut client, mut peer) = way.pair().await;
    way.link.set(LinkMode::Cut);
    is_reset(&mut client).await;
    is_reset(&mut peer).await;
    let mut another = way.connect().await;
    is_reset(&mut another).await;
    assert_eq!(way.link.struck(), 2);

    way.link.set(LinkMode::Open);
    assert_eq!(way.link.struck(), 0);
    let (mut client, mut peer) = way.pair().await;
    says(&mut client, "again").await;
    hears(&mut peer, "again").await;
}

/// A client that is a process of its own, and prints what it hears.
fn client_process(link: SocketAddr) -> Child {
    let connect = format!("exec cat < /dev/tcp/{}/{}", link.ip(), link.port());
    let mut command = Command::new("bash");
    command.args(["-c", &connect]).stdout(Stdio::piped()).stderr(Stdio::null());
    command.kill_on_drop(true).spawn().unwrap()
}

#[tokio::test]
async fn a_process_is_cut_off_alone() {
    let way = Way::new().await;
    let (mut client, mut peer) = way.pair().await;
    let mut other = client_process(way.listen);
    let other_id = other.id().unwrap();
    let (mut others_peer, _) = timeout(LONG, way.peer.accept()).await.unwrap().unwrap();
    let mut heard = [0; 5];

    way.link.set(LinkMode::CutOff(std::process::id()));
    is_reset(&mut client).await;
    is_reset(&mut peer).await;
    is_reset(&mut way.connect().await).await;
    says(&mut others_peer, "first").await;
    let out = other.stdout.as_mut().unwrap();
    timeout(LONG, out.read_exact(&mut heard)).await.unwrap().unwrap();
    assert_eq!(&heard, b"first");
    assert_eq!(way.link.struck(), 2);

    way.link.set(LinkMode::CutOff(other_id));
    is_reset(&mut others_peer).await;
    assert!(!timeout(LONG, other.wait()).await.unwrap().unwrap().success());
    let (mut client, mut peer) = way.pair().await;
    says(&mut client, "again").await;
    hears(&mut peer, "again").await;
    assert_eq!(way.link.struck(), 1);
}

#[tokio::test]
async fn a_delaying_link_holds_both_directions_in_order_and_then_no_more() {
    let way = Way::new().await;
    let (mut client, mut peer) = way.pair().await;
    way.link.set(LinkMode::Delay(DELAY));
    let asked = Instant::now();
    says(&mut client, "first").await;
    way.until_struck().await;
    way.link.set(LinkMode::Open);
    says(&mut client, "second").await;
    hears(&mut peer, "firstsecond").await;
    assert!(asked.elapsed() >= DELAY, "{:?}", asked.elapsed());

    way.link.set(LinkMode::Delay(DELAY));
    let answered = Instant::now();
    says(&mut peer, "answer").await;
    hears(&mut client, "answer").await;
    assert!(answered.elapsed() >= DELAY, "{:?}", answered.elapsed());
    assert_eq!(way.link.struck(), 6);
}

#[tokio::test]
async fn a_stalled_link_keeps_connections_silent_and_resets_them_in_the_end() {
    let way = Way::new().await;
    let (mut quiet, mut quiet_peer) = way.pair().await;
    let (mut client, mut peer) = way.pair().await;
    way.link.set(LinkMode::Stalled);
    says(&mut client, "lost").await;
    hears_nothing(&mut peer).await;
    assert_eq!(way.link.struck(), 1);
    // It is let in, and the peer does not hear of it.
    let mut another = way.connect().await;
    says(&mut another, "lost").await;
    hears_nothing(&mut another).await;
    assert_eq!(way.link.struck(), 2);

    way.link.set(LinkMode::Open);
    for stream in [&mut client, &mut peer, &mut another, &mut quiet, &mut quiet_peer] {
        is_reset(stream).await;
    }
    let (mut client, mut peer) = way.pair().await;
    says(&mut client, "again").await;
    hears(&mut peer, "again").await;
}

#[tokio::test]
async fn a_late_request_arrives_though_its_client_has_hung_up() {
    let way = Way::new().await;
    let (mut client, mut peer) = way.pair().await;
    way.link.set(LinkMode::Late(DELAY));
    let asked = Instant::now();
    says(&mut client, "EndTxn").await;
    way.until_struck().await;
    client.set_zero_linger().unwrap();
    drop(client);
    hears(&mut peer, "EndTxn").await;
    assert!(asked.elapsed() >= DELAY, "{:?}", asked.elapsed());
    // Nobody hears the answer.
    says(&mut peer, "done").await;
    ends(&mut peer).await;
}

#[tokio::test]
async fn what_is_sent_again_over_a_new_connection_comes_first() {
    let way = Way::new().await;
    let (mut client, _first) = way.pair().await;
    way.link.set(LinkMode::Late(LONG * 10));
    says(&mut client, "EndTxn").await;
    way.until_struck().await;
    let (mut again, mut second) = way.pair().await;
    says(&mut again, "EndTxn").await;
    hears(&mut second, "EndTxn").await;
}

#[tokio::test]
async fn answers_are_not_late() {
    let way = Way::new().await;
    let (mut client, mut peer) = way.pair().await;
    way.link.set(LinkMode::Late(LONG * 10));
    says(&mut peer, "at once").await;
    hears(&mut client, "at once").await;
    assert_eq!(way.link.struck(), 0);
}

#[tokio::test]
async fn the_listeners_of_one_link_are_harmed_as_one() {
    let peer = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let (link, listens) = loop {
        let listens = [free_address(), free_address()];
        if let Ok(link) = NetworkLink::start(&listens.map(|listen| (listen, peer))).await {
            break (link, listens);
        }
    };
    link.set(LinkMode::Cut);
    for listen in listens {
        is_reset(&mut TcpStream::connect(listen).await.unwrap()).await;
    }
    assert_eq!(link.struck(), 2);
}

/// A request without a body.
fn request(api: i16, client: &str) -> Vec<u8> {
    let mut rest = Vec::new();
    rest.extend(api.to_be_bytes());
    rest.extend([0, 1, 0, 0, 0, 7]);
    rest.extend((client.len() as i16).to_be_bytes());
    rest.extend(client.as_bytes());
    [&(rest.len() as u32).to_be_bytes()[..], &rest].concat()
}

const PRODUCE: i16 = 0;
const ADD_OFFSETS_TO_TXN: i16 = 25;
const END_TXN: i16 = 26;

impl Way {
    async fn passes(&self, client: &mut TcpStream, peer: &mut TcpStream, api: i16) {
        let sent = request(api, "member-0");
        client.write_all(&sent).await.unwrap();
        self.arrives(peer, &sent).await;
        peer.write_all(&[0, 0, 0, 2, 7, 7]).await.unwrap();
        let mut answer = [0; 6];
        timeout(LONG, client.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(answer, [0, 0, 0, 2, 7, 7]);
    }

    async fn arrives(&self, peer: &mut TcpStream, request: &[u8]) {
        let mut heard = vec![0; request.len()];
        timeout(LONG, peer.read_exact(&mut heard)).await.unwrap().unwrap();
        assert_eq!(heard, request);
    }
}

#[tokio::test]
async fn a_late_commit_is_sent_again_first_and_arrives_in_the_next_transaction() {
    let way = Way::new().await;
    let (mut before, _peer) = way.pair().await;
    way.link.set(LinkMode::LateCommit);
    is_reset(&mut before).await;

    let (mut client, mut peer) = way.pair().await;
    way.passes(&mut client, &mut peer, PRODUCE).await;
    way.passes(&mut client, &mut peer, ADD_OFFSETS_TO_TXN).await;
    client.write_all(&request(END_TXN, "member-0")).await.unwrap();
    is_reset(&mut client).await;
    is_reset(&mut peer).await;

    let (mut client, mut peer) = way.pair().await;
    way.passes(&mut client, &mut peer, END_TXN).await;
    way.passes(&mut client, &mut peer, PRODUCE).await;
    assert_eq!(way.link.struck(), 0);
    client.write_all(&request(ADD_OFFSETS_TO_TXN, "member-0")).await.unwrap();
    way.arrives(&mut peer, &request(ADD_OFFSETS_TO_TXN, "member-0")).await;
    peer.write_all(&[0, 0, 0, 1, 1]).await.unwrap();
    let (mut late, _) = timeout(LONG, way.peer.accept()).await.unwrap().unwrap();
    way.arrives(&mut late, &request(END_TXN, "member-0")).await;
    hears_nothing(&mut client).await;
    late.write_all(&[0, 0, 0, 1, 0]).await.unwrap();
    let mut answer = [0; 5];
    timeout(LONG, client.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, [0, 0, 0, 1, 1]);
    assert_eq!(way.link.struck(), 1);

    way.link.set(LinkMode::Open);
    is_reset(&mut client).await;
}
