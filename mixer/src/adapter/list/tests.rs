//! Lists as a table, and a provider that comes and goes.

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

fn build(json: &Json) -> Arc<dyn Adapter> {
    let context = BuildContext::default();
    configure(json).unwrap().build(&context).unwrap()
}

fn check(adapter: &dyn Adapter, value: Val<'static>) -> Result<(i32, String), AdapterError> {
    let instance = Values {
        name: "list.instance.ns",
        payload: Payload::ListEntry { value },
    };
    let result = adapter.check(&instance)?;
    Ok((result.status.code, result.status.message))
}

fn text(value: &'static str) -> Val<'static> {
    Val::String(value.into())
}

#[test]
fn values_are_listed_or_not() {
    const DENIED: i32 = tonic::Code::PermissionDenied as i32;
    const INVALID: i32 = tonic::Code::InvalidArgument as i32;
    let cases = [
        (json!({"overrides": ["a", "b"]}), text("a"), 0),
        (json!({"overrides": ["a"]}), text("A"), DENIED),
        (
            json!({"overrides": ["a"], "blacklist": true}),
            text("a"),
            DENIED,
        ),
        (json!({"overrides": ["a"], "blacklist": true}), text("b"), 0),
        (
            json!({"overrides": ["aB"], "entryType": "CASE_INSENSITIVE_STRINGS"}),
            text("Ab"),
            0,
        ),
        (
            json!({"overrides": ["10.0.0.0/8"], "entryType": "IP_ADDRESSES"}),
            text("10.1.2.3"),
            0,
        ),
        (
            json!({"overrides": ["10.0.0.1"], "entryType": "IP_ADDRESSES"}),
            text("10.0.0.2"),
            DENIED,
        ),
        (
            json!({"overrides": ["10.0.0.1"], "entryType": "IP_ADDRESSES"}),
            text("x"),
            INVALID,
        ),
        (
            json!({"overrides": ["10.0.0.1"], "entry_type": "IP_ADDRESSES"}),
            Val::Ip("::ffff:10.0.0.1".parse().unwrap()),
            0,
        ),
        (
            json!({"overrides": ["2001:db8::1"], "entryType": "IP_ADDRESSES"}),
            text("2001:db8::9"),
            0,
        ),
        (
            json!({"overrides": ["^a+$"], "entryType": "REGEX"}),
            text("aaa"),
            0,
        ),
        (
            json!({"overrides": ["^a+$"], "entryType": "REGEX"}),
            text("ab"),
            DENIED,
        ),
        (json!({}), Val::Int64(1), INVALID),
    ];
    for (json, value, want) in cases {
        let (code, message) = check(&*build(&json), value).unwrap();
        assert_eq!(code, want, "{json}: {message}");
    }
    let denied = check(&*build(&json!({})), text("a")).unwrap();
    assert_eq!(denied.1, "a is not whitelisted");
}

#[test]
fn bad_parameters_are_refused() {
    for bad in [
        json!({"providerUrl": "nowhere"}),
        json!({"providerUrl": "http://h/", "refreshInterval": "100ms"}),
        json!({"providerUrl": "http://h/", "ttl": "1s"}),
        json!({"overrides": ["x"], "entryType": "IP_ADDRESSES"}),
        json!({"overrides": ["("], "entryType": "REGEX"}),
        json!({"entryType": "OTHER"}),
        json!({"providerUrl": "ftp://h/"}),
    ] {
        assert!(configure(&bad).is_err(), "{bad}");
    }
    configure(&json!({"providerUrl": "https://h/list"})).unwrap();
}

#[tokio::test]
async fn a_list_is_fetched_and_the_overrides_added() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/list", listener.local_addr().unwrap());
    let adapter = build(&json!({"providerUrl": url, "overrides": ["mine"]}));
    assert!(check(&*adapter, text("mine")).is_err());
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut request = [0; 1024];
    let length = stream.read(&mut request).await.unwrap();
    assert!(request[..length].starts_with(b"GET /list HTTP/1.1"));
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nfoo\n\nbar b";
    stream.write_all(answer).await.unwrap();
    for _ in 0..30_000 {
        if check(&*adapter, text("foo")).is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    for value in ["foo", "bar b", "mine"] {
        assert_eq!(check(&*adapter, text(value)).unwrap().0, 0, "{value}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_is_read_again_and_dropped_when_it_is_too_old() {
    const DENIED: i32 = tonic::Code::PermissionDenied as i32;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("list");
    std::fs::write(&path, "a\n").unwrap();
    let adapter = build(&json!({"providerUrl": format!("file://{}", path.display()),
        "refreshInterval": "60s", "ttl": "150s"}));
    let listed = |value| check(&*adapter, text(value)).map(|(code, _)| code).ok();
    let seconds = |count| tokio::time::sleep(Duration::from_secs(count));
    seconds(1).await;
    assert_eq!((listed("a"), listed("b")), (Some(0), Some(DENIED)));
    std::fs::write(&path, "b\n").unwrap();
    seconds(58).await;
    assert_eq!(listed("a"), Some(0), "it is read once a minute");
    seconds(2).await;
    assert_eq!((listed("a"), listed("b")), (Some(DENIED), Some(0)));
    // Read last after a minute; the third failure finds it older than its time to live.
    std::fs::remove_file(&path).unwrap();
    seconds(174).await;
    assert_eq!(listed("b"), Some(0));
    seconds(10).await;
    assert_eq!(listed("b"), None, "nobody is judged by an old list");
    std::fs::write(&path, "b\n").unwrap();
    seconds(60).await;
    assert_eq!(listed("b"), Some(0));
}
