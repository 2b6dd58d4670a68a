use std::net::Ipv4Addr;

use tokio::net::{TcpListener, TcpSocket};

use super::*;

/// A request: its length, API key, version and correlation id. Returns the correlation id.
async fn take_request(client: &mut TcpStream) -> io::Result<[u8; 4]> {
    let length = usize::try_from(client.read_i32().await?).expect("a length");
    let mut request = vec![0; length];
    client.read_exact(&mut request).await?;
    Ok(request[4..8].try_into().expect("four bytes"))
}

/// Agrees with whoever connects on the newest version, and keeps the connection.
async fn greet_all(listener: TcpListener) {
    let mut clients = Vec::new();
    loop {
        let (mut client, _) = listener.accept().await.expect("it listens");
        let correlation = take_request(&mut client).await.expect("a greeting");
        let mut answer = BytesMut::new();
        answer.put_slice(&correlation);
        // No error; one API, which is Fetch, in versions 13 to 17; no throttling, no tags.
        answer.put_i16(0);
        answer.put_u8(2);
        for number in [ApiKey::Fetch as i16, OLDEST, NEWEST] {
            answer.put_i16(number);
        }
        answer.put_u8(0);
        answer.put_i32(0);
        answer.put_u8(0);
        client.write_i32(i32::try_from(answer.len()).expect("short")).await.expect("it reads");
        client.write_all(&answer).await.expect("it reads");
        clients.push(client);
    }
}

/// An address whose listener takes no connection any more, as a machine that is gone answers to
/// none, with what keeps it so.
async fn dead_address() -> (SocketAddr, impl Sized) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a port is free");
    let listener = socket.listen(1).expect("it listens");
    let address = listener.local_addr().expect("it is bound");
    let mut waiting = Vec::new();
    while let Ok(client) = timeout(Duration::from_millis(500), TcpStream::connect(address)).await {
        waiting.push(client.expect("there is room"));
    }
    (address, (listener, waiting))
}

#[tokio::test]
async fn a_broker_whose_first_address_is_dead_is_reached_at_the_next() {
    let (dead, _kept) = dead_address().await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
    let alive = listener.local_addr().expect("it listens");
    let broker = tokio::spawn(greet_all(listener));
    let opened = Connection::open(&[dead, alive][..], "test", BufferPool::new(0)).await;
    let connection = opened.expect("one of the addresses is alive");
    assert_eq!(connection.stream.peer_addr().expect("it is connected"), alive);
    broker.abort();
}

/// Sends an answer in pieces, with a pause before each.
async fn receive_in_pieces(bytes: usize, piece: usize, pause: Duration) -> Result<Bytes, Error> {
    let (mut broker, mut client) = tokio::io::duplex(bytes + 4);
    let send = tokio::spawn(async move {
        broker.write_i32(i32::try_from(bytes).expect("short")).await?;
        let answer = vec![7; bytes];
        for piece in answer.chunks(piece) {
            tokio::time::sleep(pause).await;
            broker.write_all(piece).await?;
        }
        // It says no more, and does not hang up.
        std::future::pending::<io::Result<()>>().await
    });
    let received = receive_frame(&mut client, &BufferPool::new(0)).await;
    send.abort();
    received
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_slowly_is_taken_whole() {
    // For a minute, where ten seconds of silence are too many.
    let answer = receive_in_pieces(60 * SLOWEST, SLOWEST, Duration::from_secs(1)).await;
    assert_eq!(answer.expect("it came").len(), 60 * SLOWEST);
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_says_no_more_counts_as_gone() {
    let answer = receive_in_pieces(1 << 20, 1 << 19, SILENCE + Duration::from_secs(1)).await;
    assert!(matches!(answer, Err(Error::Timeout(SILENCE))), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_a_few_bytes_now_and_then_is_given_up() {
    let answer = receive_in_pieces(1 << 20, 1, SILENCE / 2).await;
    assert!(answer.is_err_and(|error| error.to_string().contains("bytes/s")));
}
