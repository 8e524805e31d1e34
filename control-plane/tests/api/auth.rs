use std::time::{Duration, Instant, SystemTime};

use serde_json::json;

use crate::{
    client::{Call, ECS, exchange},
    world::World,
};

fn list() -> Call {
    Call::ecs("ListClusters", &json!({}))
}

#[tokio::test]
async fn a_signed_call_is_answered_and_can_be_repeated() {
    let world = World::new().await;
    let call = list();
    assert_eq!(call.send(world.address).await.ok(), json!({"clusterArns": []}));
    // Inside the window an identical repeat is accepted, as AWS does.
    call.send(world.address).await.ok();
}

#[tokio::test]
async fn what_is_not_signed_is_refused_with_what_to_do() {
    let world = World::new().await;
    let answer = Call {
        signed: false,
        ..list()
    }
    .send(world.address)
    .await;
    assert!(
        answer
            .refused("MissingAuthenticationTokenException")
            .contains("sign the request")
    );
    assert_eq!(answer.status, 400);
}

#[tokio::test]
async fn a_wrong_key_secret_or_body_is_refused() {
    let world = World::new().await;
    let wrong_key = Call {
        key: "AKIDNOBODY".into(),
        ..list()
    };
    let message = wrong_key
        .send(world.address)
        .await
        .refused("UnrecognizedClientException");
    assert!(message.contains("AKIDNOBODY"), "{message}");
    let wrong_secret = Call {
        secret: "guess".into(),
        ..list()
    };
    let message = wrong_secret
        .send(world.address)
        .await
        .refused("InvalidSignatureException");
    assert!(
        message.contains("does not match the signature you provided"),
        "{message}"
    );
    let mut altered = Call::ecs("CreateCluster", &json!({"clusterName": "good"}));
    altered.altered = Some(br#"{"clusterName": "evil"}"#.to_vec());
    altered
        .send(world.address)
        .await
        .refused("InvalidSignatureException");
    assert_eq!(list().send(world.address).await.ok(), json!({"clusterArns": []}));
}

#[tokio::test]
async fn a_skewed_clock_is_told_both_times() {
    let world = World::new().await;
    let now = SystemTime::now();
    for (at, start) in [
        (now - Duration::from_secs(600), "Signature expired: "),
        (now + Duration::from_secs(600), "Signature not yet current: "),
    ] {
        let message = Call { at, ..list() }
            .send(world.address)
            .await
            .refused("InvalidSignatureException");
        assert!(message.starts_with(start), "{message}");
        assert!(
            message.contains("The server's clock says") && message.contains("the request's"),
            "{message}"
        );
    }
    Call {
        at: now - Duration::from_secs(240),
        ..list()
    }
    .send(world.address)
    .await
    .ok();
}

#[tokio::test]
async fn another_region_or_service_is_refused_by_name() {
    let world = World::new().await;
    let message = Call {
        region: "us-west-2".into(),
        ..list()
    }
    .send(world.address)
    .await;
    let message = message.refused("InvalidSignatureException");
    assert!(
        message.contains("'us-west-2'") && message.contains("AWS_REGION=eu-central-1"),
        "{message}"
    );
    let message = Call {
        service: "iam".into(),
        ..list()
    }
    .send(world.address)
    .await;
    assert!(message.refused("InvalidSignatureException").contains("'iam'"));
}

#[tokio::test]
async fn session_tokens_and_unsigned_amz_headers_are_refused() {
    let world = World::new().await;
    let mut call = list();
    call.signed_extra
        .push(("x-amz-security-token".into(), "from-an-old-session".into()));
    let message = call
        .send(world.address)
        .await
        .refused("UnrecognizedClientException");
    assert!(message.contains("Unset AWS_SESSION_TOKEN"), "{message}");
    let mut call = list();
    call.extra.push(("x-amz-meta".into(), "smuggled".into()));
    assert!(
        call.send(world.address)
            .await
            .refused("InvalidSignatureException")
            .contains("x-amz-meta")
    );
    let mut call = list();
    call.extra
        .push(("x-amz-target".into(), format!("{ECS}.DeleteCluster")));
    call.send(world.address)
        .await
        .refused("InvalidSignatureException");
}

#[tokio::test]
async fn large_requests_are_refused() {
    let world = World::new().await;
    let answer = Call::new(format!("{ECS}.ListClusters"), vec![b' '; (1 << 20) + 1])
        .send(world.address)
        .await;
    answer.refused("RequestEntityTooLargeException");
    assert_eq!(answer.status, 413);
    let mut call = list();
    call.extra.push(("user-agent".into(), "x".repeat(20_000)));
    call.send(world.address)
        .await
        .refused("RequestHeaderSectionTooLargeException");
}

#[tokio::test]
async fn what_is_not_an_operation_is_refused_by_name() {
    let world = World::new().await;
    for (target, code) in [
        (format!("{ECS}.CreateService"), "ClientException"),
        (format!("{ECS}.UpdateContainerAgent"), "ClientException"),
        (format!("{ECS}.MakeCoffee"), "UnknownOperationException"),
        ("AmazonSSM.GetParameter".to_owned(), "UnknownOperationException"),
        ("BerthV1.MakeCoffee".to_owned(), "UnknownOperationException"),
        (String::new(), "UnknownOperationException"),
    ] {
        let message = Call::new(target.clone(), "{}")
            .send(world.address)
            .await
            .refused(code);
        if code == "ClientException" {
            assert!(
                message.ends_with("is not supported by this endpoint"),
                "{message}"
            );
        }
    }
    let answer = exchange(
        world.address,
        "GET /health HTTP/1.1",
        &[("host".into(), "x".into())],
        b"",
    )
    .await;
    answer.refused("UnknownOperationException");
}

#[tokio::test]
async fn bodies_that_are_no_json_object_are_refused() {
    let world = World::new().await;
    for body in ["{", "[]", "\"x\"", "{\"a\": 1,}"] {
        Call::new(format!("{ECS}.ListClusters"), body)
            .send(world.address)
            .await
            .refused("SerializationException");
    }
    Call::new(format!("{ECS}.ListClusters"), "")
        .send(world.address)
        .await
        .ok();
}

/// Terraform takes every 400 of DescribeTaskDefinition for "it is gone".
#[tokio::test]
async fn a_store_that_fails_is_the_servers_fault() {
    let world = World::new().await;
    world.store.close().await;
    let answer = world
        .call("DescribeTaskDefinition", json!({"taskDefinition": "web"}))
        .await;
    let message = answer.refused("ServerException");
    assert_eq!(answer.status, 500);
    assert!(
        message.contains(answer.header("x-amzn-requestid").unwrap()),
        "{message}"
    );
}

#[tokio::test]
async fn bodies_that_do_not_come_keep_nobody_out() {
    let world = World::new().await;
    let answer = world
        .berth("CreateApiKey", json!({"name": "slow", "role": "read-only"}))
        .await
        .ok();
    let slow = |bytes: usize| {
        let mut call = list();
        call.key = answer["apiKey"]["accessKeyId"].as_str().unwrap().to_owned();
        call.secret = answer["secretAccessKey"].as_str().unwrap().to_owned();
        call.body = vec![b' '; bytes];
        call
    };
    let small = slow(1_000);
    let held = futures_util::future::join_all((0..300).map(|_| small.send_head(world.address))).await;
    let large = slow(100_000);
    let parts = futures_util::future::join_all((0..32).map(|_| large.send_part(world.address, 50_000))).await;
    // The server may not have come to read all of that yet.
    let share_is_taken = async { while large.send(world.address).await.status != 503 {} };
    tokio::time::timeout(Duration::from_secs(4), share_is_taken)
        .await
        .expect("one caller holds all the memory it likes");
    let started = Instant::now();
    list().send(world.address).await.ok();
    let definition = Call {
        body: [b"{}".as_slice(), &vec![b' '; 100_000]].concat(),
        ..list()
    };
    definition.send(world.address).await.ok();
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "{:?}",
        started.elapsed()
    );
    drop((held, parts));
}

fn sts(body: &str) -> Call {
    Call {
        service: "sts".into(),
        content_type: "application/x-www-form-urlencoded; charset=utf-8".into(),
        target: String::new(),
        ..Call::new("", body)
    }
}

#[tokio::test]
async fn sts_says_who_calls_in_its_own_protocol() {
    let world = World::new().await;
    let call = sts("Action=GetCallerIdentity&Version=2011-06-15");
    for region in ["eu-central-1", "us-east-1"] {
        let answer = Call {
            region: region.into(),
            ..call.clone()
        }
        .send(world.address)
        .await;
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (200, Some("text/xml"))
        );
        assert!(
            answer.text.contains("<Account>123456789012</Account>"),
            "{}",
            answer.text
        );
        assert!(
            answer
                .text
                .contains("<Arn>arn:aws:iam::123456789012:user/AKIDTESTS</Arn>"),
            "{}",
            answer.text
        );
    }
    for (call, status, code) in [
        (sts("Action=AssumeRole&Version=2011-06-15"), 400, "InvalidAction"),
        (
            Call {
                secret: "guess".into(),
                ..call.clone()
            },
            403,
            "SignatureDoesNotMatch",
        ),
        (
            Call {
                key: "AKIDNOBODY".into(),
                ..call.clone()
            },
            403,
            "InvalidClientTokenId",
        ),
        (
            Call {
                signed: false,
                ..call.clone()
            },
            403,
            "MissingAuthenticationToken",
        ),
    ] {
        let answer = call.send(world.address).await;
        assert_eq!(answer.status, status, "{}", answer.text);
        assert!(
            answer.text.contains(&format!("<Code>{code}</Code>")),
            "{}",
            answer.text
        );
    }
}
