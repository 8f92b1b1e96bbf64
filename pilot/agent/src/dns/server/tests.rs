//! A server on loopback with a table and a resolver behind it.

use std::net::Ipv4Addr;

use proptest::prelude::*;
use proto::istio::networking::nds::v1::NameTable;
use proto::istio::networking::nds::v1::name_table::NameInfo;
use simple_dns::Question;

use super::super::table::Table;
use super::*;

const SEARCH: &str = "default.svc.cluster.local";
const PATIENCE: Duration = Duration::from_secs(20);

fn names(many: u8) -> Names {
    let info = |ips: Vec<String>| NameInfo {
        ips,
        registry: "External".to_owned(),
        ..NameInfo::default()
    };
    let all = (1..=many).map(|last| format!("10.0.0.{last}"));
    let table = [
        (
            "api.example.com".to_owned(),
            info(vec!["240.240.0.1".to_owned()]),
        ),
        ("many.example.com".to_owned(), info(all.collect())),
    ];
    let table = NameTable {
        table: table.into(),
    };
    let table = Table::new(table, "default", SEARCH, SEARCH);
    Names::new(arc_swap::ArcSwapOption::from_pointee(Some(table)))
}

fn server(names: Names, resolvers: Vec<SocketAddr>) -> NameServer {
    let resolvers = Resolvers::new(resolvers, vec![SEARCH.to_owned()]);
    NameServer::new(names, resolvers, Metrics::new(&Registry::new()).unwrap())
}

/// A free port, for both transports.
async fn bound() -> Bound {
    loop {
        // Somebody else may have the port for one of the two.
        if let Ok(bound) = Bound::new((Ipv4Addr::LOCALHOST, 0).into()).await {
            return bound;
        }
    }
}

/// A resolver that says `result` to everything, with an address if all is well.
async fn resolver(result: RCODE) -> SocketAddr {
    let bound = bound().await;
    let address = bound.address();
    let answer = move |query: &[u8]| {
        let query = Packet::parse(query).unwrap();
        let mut reply = reply_to(&query);
        *reply.rcode_mut() = result;
        if result == RCODE::NoError {
            let data = RData::A(Ipv4Addr::new(192, 0, 2, 1).into());
            let name = query.questions[0].qname.clone();
            let record = ResourceRecord::new(name, CLASS::IN, 1, data);
            reply.answers.push(record);
        }
        reply.build_bytes_vec_compressed().unwrap()
    };
    task::spawn("test-udp", async move {
        let mut buffer = [0; 512];
        while let Ok((length, client)) = bound.datagrams.recv_from(&mut buffer).await {
            // Somebody guesses first: it is not heard.
            let liar = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let reply = answer(&buffer[..length]);
            let _ = liar.send_to(&reply, client).await;
            let _ = bound.datagrams.send_to(&reply, client).await;
        }
    });
    task::spawn("test-tcp", async move {
        while let Ok((mut stream, _)) = bound.streams.accept().await {
            while let Ok(Some(query)) = read_message(&mut stream).await {
                write_message(&mut stream, &answer(&query)).await.unwrap();
            }
        }
    });
    address
}

fn query(name: &str, kind: TYPE) -> Vec<u8> {
    let mut query = Packet::new_query(77);
    query.set_flags(PacketFlag::RECURSION_DESIRED);
    let name = Name::new(name).unwrap();
    let question = Question::new(name, kind.into(), QCLASS::CLASS(CLASS::IN), false);
    query.questions.push(question);
    query.build_bytes_vec().unwrap()
}

/// Starts serving, and asks once: the result, and the records as text.
async fn ask(
    server: &NameServer,
    transport: Transport,
    query: &[u8],
) -> (RCODE, bool, Vec<String>) {
    let bound = bound().await;
    let address = bound.address();
    server.serve(bound, &Drain::never());
    let exchange = async {
        match transport {
            Transport::Udp => {
                let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                socket.send_to(query, address).await.unwrap();
                let mut buffer = vec![0; 4096];
                let length = socket.recv(&mut buffer).await.unwrap();
                buffer.truncate(length);
                buffer
            }
            Transport::Tcp => {
                let mut stream = TcpStream::connect(address).await.unwrap();
                write_message(&mut stream, query).await.unwrap();
                read_message(&mut stream).await.unwrap().unwrap()
            }
        }
    };
    let bytes = timeout(PATIENCE, exchange)
        .await
        .expect("an answer in time");
    let reply = Packet::parse(&bytes).unwrap();
    assert_eq!(reply.id(), 77);
    assert!(reply.has_flags(PacketFlag::RESPONSE));
    assert_eq!(reply.questions.len(), 1);
    let records = reply.answers.iter().map(|record| match &record.rdata {
        RData::A(a) => format!("{} A {}", record.name, Ipv4Addr::from(a.address)),
        RData::CNAME(CNAME(name)) => format!("{} CNAME {name}", record.name),
        other => format!("{other:?}"),
    });
    let is_cut = reply.has_flags(PacketFlag::TRUNCATION);
    (reply.rcode(), is_cut, records.collect())
}

#[tokio::test]
async fn names_of_the_mesh_are_answered_and_others_asked_for() {
    let server = server(names(2), vec![resolver(RCODE::NoError).await]);
    for transport in [Transport::Udp, Transport::Tcp] {
        for (name, kind, records) in [
            (
                "api.example.com",
                TYPE::A,
                vec!["api.example.com A 240.240.0.1"],
            ),
            (
                "API.example.COM",
                TYPE::A,
                vec!["api.example.com A 240.240.0.1"],
            ),
            // It is known, and has none.
            ("api.example.com", TYPE::AAAA, vec![]),
            (
                "api.example.com.default.svc.cluster.local",
                TYPE::A,
                vec![
                    "api.example.com.default.svc.cluster.local CNAME api.example.com",
                    "api.example.com A 240.240.0.1",
                ],
            ),
            (
                "elsewhere.example.net",
                TYPE::A,
                vec!["elsewhere.example.net A 192.0.2.1"],
            ),
            // What else is asked of a name of ours is not ours to say.
            (
                "api.example.com",
                TYPE::TXT,
                vec!["api.example.com A 192.0.2.1"],
            ),
        ] {
            let answer = ask(&server, transport, &query(name, kind)).await;
            let records: Vec<String> = records.into_iter().map(str::to_owned).collect();
            assert_eq!(answer, (RCODE::NoError, false, records), "{name} {kind:?}");
        }
    }
}

#[tokio::test]
async fn before_names_have_come_everything_is_asked_for() {
    let server = server(Names::default(), vec![resolver(RCODE::NoError).await]);
    let (_, _, records) = ask(&server, Transport::Udp, &query("api.example.com", TYPE::A)).await;
    assert_eq!(records, ["api.example.com A 192.0.2.1"]);
}

#[tokio::test]
async fn an_answer_that_is_too_long_comes_by_tcp_with_another_address_first() {
    let server = server(names(100), Vec::new());
    let many = query("many.example.com", TYPE::A);
    let (result, is_cut, records) = ask(&server, Transport::Udp, &many).await;
    assert_eq!((result, is_cut, records.len()), (RCODE::NoError, true, 0));
    let (_, _, first) = ask(&server, Transport::Tcp, &many).await;
    let (_, _, second) = ask(&server, Transport::Tcp, &many).await;
    assert_eq!((first.len(), second.len()), (100, 100));
    assert_ne!(first[0], second[0]);
}

#[tokio::test]
async fn a_resolver_that_fails_is_followed_by_the_next() {
    // Nobody listens there.
    let unused = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let good = resolver(RCODE::NoError).await;
    let refusing = resolver(RCODE::Refused).await;
    let question = query("elsewhere.example.net", TYPE::A);
    for transport in [Transport::Udp, Transport::Tcp] {
        let some = server(names(1), vec![refusing, unused, good]);
        let (result, _, records) = ask(&some, transport, &question).await;
        assert_eq!((result, records.len()), (RCODE::NoError, 1));
        let none = server(names(1), vec![unused]);
        let (result, ..) = ask(&none, transport, &question).await;
        assert_eq!(result, RCODE::ServerFailure);
        let refused = server(names(1), vec![refusing]);
        let (result, ..) = ask(&refused, transport, &question).await;
        assert_eq!(result, RCODE::Refused);
    }
}

#[test]
fn resolvers_are_asked_for_kinds_that_came_later_and_answers_are_ignored() {
    let server = server(names(1), Vec::new());
    let mut question = query("_443._tcp.example.net", TYPE::A);
    // The kind stands before the class at the end; this one is TLSA.
    let kind = question.len() - 4;
    question[kind..kind + 2].copy_from_slice(&52_u16.to_be_bytes());
    let decide = |message: &[u8]| server.decide(message, Transport::Udp);
    assert!(matches!(decide(&question), Decision::Ask));
    question[2] |= 0x80;
    assert!(matches!(decide(&question), Decision::Ignore));
}

proptest! {
    #[test]
    fn no_message_is_too_strange(message in proptest::collection::vec(any::<u8>(), 0..96)) {
        drop(server(names(1), Vec::new()).decide(&message, Transport::Udp));
    }
}
