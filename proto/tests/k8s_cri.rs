//! A second opinion on the wire: messages pass between the independent `k8s-cri` crate and ours.
//!
//! For every message that crate has, bytes with each field of ours set are decoded by it and
//! encoded again, so that exactly what it knows remains; ours must read that, write it, and
//! the other side must find its own value back. What was compared is counted, so that nothing
//! passes by being skipped. Its build script needs `protoc` (Debian: protobuf-compiler).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use bulkhead_proto::{DESCRIPTORS, runtime::v1};
use prost::Message;
use prost::encoding::{WireType, decode_key, encode_key, encode_varint, skip_field};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

/// Our messages by full name, map entries included.
struct Known(BTreeMap<String, DescriptorProto>);

impl Known {
    fn load() -> Self {
        let set = FileDescriptorSet::decode(DESCRIPTORS).expect("our descriptors");
        let mut all = BTreeMap::new();
        for message in set.file.iter().flat_map(|f| &f.message_type) {
            let name = format!(".runtime.v1.{}", message.name());
            for nested in &message.nested_type {
                all.insert(format!("{name}.{}", nested.name()), nested.clone());
            }
            all.insert(name, message.clone());
        }
        Self(all)
    }

    /// Wire bytes of a message with every field set to something other than its default.
    fn filled(&self, name: &str) -> Vec<u8> {
        let mut out = Vec::new();
        for field in &self.0[name].field {
            let times = if field.label() == Label::Repeated {
                2
            } else {
                1
            };
            for _ in 0..times {
                self.put(field, &mut out);
            }
        }
        out
    }

    fn put(&self, field: &FieldDescriptorProto, out: &mut Vec<u8>) {
        let number = u32::try_from(field.number()).expect("field numbers are positive");
        let mut key = |wire| encode_key(number, wire, out);
        let bytes = match field.r#type() {
            Type::String | Type::Bytes => format!("{}-{number}", field.name()).into_bytes(),
            Type::Message => self.filled(field.type_name()),
            Type::Double => {
                key(WireType::SixtyFourBit);
                out.extend_from_slice(&(f64::from(number) + 0.5).to_le_bytes());
                return;
            }
            Type::Bool | Type::Enum => {
                key(WireType::Varint);
                encode_varint(1, out);
                return;
            }
            Type::Int32 | Type::Int64 | Type::Uint32 | Type::Uint64 => {
                key(WireType::Varint);
                encode_varint(u64::from(number) + 300, out);
                return;
            }
            other => panic!("{}: CRI has no fields of type {other:?}", field.name()),
        };
        key(WireType::LengthDelimited);
        encode_varint(u64::try_from(bytes.len()).expect("a length fits"), out);
        out.extend_from_slice(&bytes);
    }
}

fn field_numbers(mut bytes: &[u8]) -> BTreeSet<u32> {
    let mut numbers = BTreeSet::new();
    while !bytes.is_empty() {
        let (number, wire) = decode_key(&mut bytes).expect("bytes prost wrote");
        skip_field(wire, number, &mut bytes, Default::default()).expect("bytes prost wrote");
        numbers.insert(number);
    }
    numbers
}

/// There and back; the number of fields that took part.
fn exchange<Theirs, Ours>(name: &str, filled: &[u8]) -> usize
where
    Theirs: Message + Default + PartialEq + Debug,
    Ours: Message + Default + PartialEq + Debug,
{
    let theirs =
        Theirs::decode(filled).unwrap_or_else(|e| panic!("{name}: k8s-cri reads ours: {e}"));
    let sent = theirs.encode_to_vec();
    let ours =
        Ours::decode(&sent[..]).unwrap_or_else(|e| panic!("{name}: ours reads k8s-cri: {e}"));
    let back = Theirs::decode(&ours.encode_to_vec()[..]).expect("bytes the other side wrote");
    assert_eq!(theirs, back, "{name} changed on its way through ours");
    let again = Ours::decode(&back.encode_to_vec()[..]).expect("bytes the other side wrote");
    assert_eq!(ours, again, "{name} changed on its way through k8s-cri");
    field_numbers(&sent).len()
}

type Exchange = fn(&str, &[u8]) -> usize;

macro_rules! messages {
    ($($name:ident)*) => {
        &[$((stringify!($name), exchange::<k8s_cri::v1::$name, v1::$name> as Exchange)),*]
    };
}

/// Every message of k8s-cri 0.11, by its Rust name.
const MESSAGES: &[(&str, Exchange)] = messages! {
    VersionRequest VersionResponse DnsConfig PortMapping Mount IdMapping UserNamespace
    NamespaceOption Int64Value LinuxSandboxSecurityContext SecurityProfile LinuxPodSandboxConfig
    PodSandboxMetadata PodSandboxConfig RunPodSandboxRequest RunPodSandboxResponse
    StopPodSandboxRequest StopPodSandboxResponse RemovePodSandboxRequest
    RemovePodSandboxResponse PodSandboxStatusRequest PodIp PodSandboxNetworkStatus Namespace
    LinuxPodSandboxStatus PodSandboxStatus PodSandboxStatusResponse PodSandboxStateValue
    PodSandboxFilter ListPodSandboxRequest PodSandbox ListPodSandboxResponse
    PodSandboxStatsRequest PodSandboxStatsResponse PodSandboxStatsFilter
    ListPodSandboxStatsRequest ListPodSandboxStatsResponse PodSandboxAttributes PodSandboxStats
    LinuxPodSandboxStats WindowsPodSandboxStats NetworkUsage WindowsNetworkUsage
    NetworkInterfaceUsage WindowsNetworkInterfaceUsage ProcessUsage WindowsProcessUsage
    ImageSpec KeyValue LinuxContainerResources HugepageLimit SeLinuxOption Capability
    LinuxContainerSecurityContext LinuxContainerConfig LinuxContainerUser WindowsNamespaceOption
    WindowsSandboxSecurityContext WindowsPodSandboxConfig WindowsContainerSecurityContext
    WindowsContainerConfig WindowsContainerResources WindowsCpuGroupAffinity ContainerMetadata
    Device CdiDevice ContainerConfig CreateContainerRequest CreateContainerResponse
    StartContainerRequest StartContainerResponse StopContainerRequest StopContainerResponse
    RemoveContainerRequest RemoveContainerResponse ContainerStateValue ContainerFilter
    ListContainersRequest Container ListContainersResponse ContainerStatusRequest
    ContainerStatus ContainerStatusResponse ContainerResources ContainerUser
    UpdateContainerResourcesRequest UpdateContainerResourcesResponse ExecSyncRequest
    ExecSyncResponse ExecRequest ExecResponse AttachRequest AttachResponse PortForwardRequest
    PortForwardResponse ImageFilter ListImagesRequest Image ListImagesResponse
    ImageStatusRequest ImageStatusResponse AuthConfig PullImageRequest PullImageResponse
    RemoveImageRequest RemoveImageResponse NetworkConfig RuntimeConfig
    UpdateRuntimeConfigRequest UpdateRuntimeConfigResponse RuntimeCondition RuntimeStatus
    StatusRequest RuntimeHandlerFeatures RuntimeHandler RuntimeFeatures StatusResponse
    ImageFsInfoRequest UInt64Value FilesystemIdentifier FilesystemUsage WindowsFilesystemUsage
    ImageFsInfoResponse ContainerStatsRequest ContainerStatsResponse ListContainerStatsRequest
    ContainerStatsFilter ListContainerStatsResponse ContainerAttributes ContainerStats
    WindowsContainerStats CpuUsage WindowsCpuUsage MemoryUsage SwapUsage WindowsMemoryUsage
    ReopenContainerLogRequest ReopenContainerLogResponse CheckpointContainerRequest
    CheckpointContainerResponse GetEventsRequest ContainerEventResponse
    ListMetricDescriptorsRequest ListMetricDescriptorsResponse MetricDescriptor
    ListPodSandboxMetricsRequest ListPodSandboxMetricsResponse PodSandboxMetrics
    ContainerMetrics Metric RuntimeConfigRequest RuntimeConfigResponse LinuxRuntimeConfiguration
};

#[test]
fn every_message_k8s_cri_knows_passes_both_ways_unchanged() {
    let known = Known::load();
    // Rust spells DNSConfig as DnsConfig: names are found without regard to case.
    let names: BTreeMap<String, &String> = known
        .0
        .keys()
        .map(|name| (name.replace(".runtime.v1.", "").to_lowercase(), name))
        .collect();
    let mut fields = 0;
    for (name, exchange) in MESSAGES {
        let full = names[&name.to_lowercase()];
        fields += exchange(name, &known.filled(full));
    }
    assert_eq!((MESSAGES.len(), fields), (153, 432));
}
