use proptest::prelude::*;

use super::*;

fn any_span() -> impl Strategy<Value = RemoteSpan> {
    (any::<u32>(), any::<bool>(), 0..1u64 << 63, 1..1u64 << 62).prop_map(
        |(region, data, offset, len)| RemoteSpan {
            region: RegionId(region),
            part: if data { Part::Data } else { Part::Generations },
            offset,
            len,
        },
    )
}

fn any_outcome() -> impl Strategy<Value = Result<u64, SpanFault>> {
    prop_oneof![
        any::<u64>().prop_map(Ok),
        any::<u32>().prop_map(|region| Err(SpanFault::RegionGone(RegionId(region)))),
        (1u8..=5).prop_map(|code| Err(SpanFault::Refused(refusal(code).unwrap()))),
        any_refusal().prop_map(|refusal| Err(SpanFault::Refused(SpanRefusal::Ticket(refusal)))),
    ]
}

fn any_refusal() -> impl Strategy<Value = Refusal> {
    use kvferry_observe::Label;
    prop::sample::select(Refusal::ALL)
}

proptest! {
    #[test]
    fn hellos_round_trip_and_every_prefix_is_incomplete(
        incarnation: u64,
        ticket in prop::collection::vec(any::<u8>(), 0..200),
        max_spans: u32,
        max_bytes: u64,
        code in 0u8..7,
        refusal in any_refusal(),
    ) {
        let hello = ClientHello { incarnation, ticket };
        let bytes = hello.encode();
        for cut in 0..bytes.len() {
            prop_assert_eq!(ClientHello::decode(&bytes[..cut]), Ok(None));
        }
        let len = bytes.len();
        prop_assert_eq!(ClientHello::decode(&bytes), Ok(Some((hello, len))));

        let welcome = match code {
            0 => Welcome::Accepted,
            1 => Welcome::WrongIncarnation,
            2 => Welcome::Refused(RefusalReason::Busy),
            3 => Welcome::Refused(RefusalReason::Ticket(refusal)),
            6 => Welcome::Prove,
            4 => Welcome::Refused(RefusalReason::ShuttingDown),
            5 => Welcome::Refused(RefusalReason::Tls),
            _ => Welcome::Refused(RefusalReason::Other),
        };
        let hello = ServerHello { welcome, incarnation, max_spans, max_bytes };
        let bytes = hello.encode();
        for cut in 0..bytes.len() {
            prop_assert_eq!(ServerHello::decode(&bytes[..cut]), Ok(None));
        }
        prop_assert_eq!(ServerHello::decode(&bytes), Ok(Some((hello, bytes.len()))));
    }

    #[test]
    fn requests_round_trip(id: u32, spans in prop::collection::vec(any_span(), 1..40)) {
        let mut bytes = Vec::new();
        encode_request(id, &spans, &mut bytes);
        let mut seen = Vec::new();
        for cut in [0, 7, 8, bytes.len() - 1] {
            prop_assert_eq!(decode_request(&bytes[..cut], MAX_SPANS, &mut seen), Ok(None));
        }
        bytes.push(9); // the next frame
        let decoded = decode_request(&bytes, MAX_SPANS, &mut seen);
        prop_assert_eq!(decoded, Ok(Some((Asked::Spans { id }, bytes.len() - 1))));
        prop_assert_eq!(seen, spans);
    }

    #[test]
    fn renewals_round_trip(id: u32, ticket in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = Vec::new();
        encode_renewal(id, &ticket, &mut bytes);
        let mut spans = Vec::new();
        for cut in 0..bytes.len() {
            prop_assert_eq!(decode_request(&bytes[..cut], 16, &mut spans), Ok(None));
        }
        bytes.push(9); // the next frame
        let decoded = decode_request(&bytes, 16, &mut spans);
        let len = bytes.len() - 1;
        prop_assert_eq!(decoded, Ok(Some((Asked::Renewal { id, ticket }, len))));
        prop_assert!(len <= frame_bytes(16));
    }

    #[test]
    fn response_heads_round_trip(id: u32, outcome in any_outcome()) {
        let head = ResponseHead { id, outcome };
        prop_assert_eq!(ResponseHead::decode(&head.encode()), Ok(head));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut spans = Vec::new();
        let _ = ClientHello::decode(&bytes);
        let _ = ServerHello::decode(&bytes);
        let _ = decode_request(&bytes, MAX_SPANS, &mut spans);
        if let Some(head) = bytes.first_chunk() {
            let _ = ResponseHead::decode(head);
        }
        // Past the magic, where the interesting branches are.
        let mut hello = ClientHello { incarnation: 1, ticket: Vec::new() }.encode();
        hello.truncate(6);
        hello.extend(&bytes);
        let _ = ClientHello::decode(&hello);
        let _ = ServerHello::decode(&hello);
    }
}

#[test]
fn what_is_wrong_is_named() {
    assert_eq!(
        ClientHello::decode(b"GET / HTTP/1.1"),
        Err(FrameError::Magic)
    );
    let mut hello = ClientHello {
        incarnation: 7,
        ticket: Vec::new(),
    }
    .encode();
    hello[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(
        ClientHello::decode(&hello),
        Err(FrameError::TicketLength { len: u32::MAX })
    );
    hello[4] = 9;
    assert_eq!(
        ClientHello::decode(&hello),
        Err(FrameError::Version { found: 9 })
    );
    let mut spans = Vec::new();
    let mut renewal = Vec::new();
    encode_renewal(1, &[], &mut renewal);
    renewal[8..12].copy_from_slice(&5000u32.to_le_bytes());
    assert_eq!(
        decode_request(&renewal, 16, &mut spans),
        Err(FrameError::TicketLength { len: 5000 })
    );
    for count in [0, 17, u32::MAX] {
        let mut request = vec![0; 4];
        request.extend_from_slice(&count.to_le_bytes());
        assert_eq!(
            decode_request(&request, 16, &mut spans),
            Err(FrameError::SpanCount { count, max: 16 })
        );
    }
    let mut request = Vec::new();
    let far = RemoteSpan {
        region: RegionId(1),
        part: Part::Data,
        offset: u64::MAX,
        len: 2,
    };
    encode_request(1, &[far], &mut request);
    assert!(matches!(
        decode_request(&request, 16, &mut spans),
        Err(FrameError::Span { .. })
    ));
    request[12] = 2;
    assert_eq!(
        decode_request(&request, 16, &mut spans),
        Err(FrameError::Part { found: 2 })
    );
    request[13] = 1;
    assert_eq!(
        decode_request(&request, 16, &mut spans),
        Err(FrameError::Reserved)
    );
}
