//! Our definitions against the table of CRI v1 (`cri-v1-fields.tsv`, every RPC, message, field and
//! enum value of Kubernetes 1.37): a name, number, type or label that is missing, different or
//! extra fails, as the kubelet would silently lose it.

use std::collections::BTreeSet;

use bulkhead_proto::DESCRIPTORS;
use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
};

/// One line per thing, in the table's form: kind, owner, name, number, type, label.
type Lines = BTreeSet<String>;

fn of_service(service: &ServiceDescriptorProto, lines: &mut Lines) {
    for method in &service.method {
        let side = |streaming: bool, name: &str| {
            format!("{}{}", if streaming { "stream " } else { "" }, last(name))
        };
        let input = side(method.client_streaming(), method.input_type());
        let output = side(method.server_streaming(), method.output_type());
        lines.insert(format!(
            "rpc\t{}\t{}\t\t{input} -> {output}\t",
            service.name(),
            method.name()
        ));
    }
}

fn of_message(message: &DescriptorProto, lines: &mut Lines) {
    lines.insert(format!("message\t{}\t\t\t\t", message.name()));
    for field in &message.field {
        lines.insert(format!(
            "field\t{}\t{}\t{}\t{}\t{}",
            message.name(),
            field.name(),
            field.number(),
            type_of(field, message),
            label_of(field, message)
        ));
    }
    for nested in &message.enum_type {
        of_enum(nested, &format!("{}.", message.name()), lines);
    }
    assert!(
        message.oneof_decl.is_empty() && message.nested_type.iter().all(is_map_entry),
        "{}: the table has no oneofs and no nested messages",
        message.name()
    );
}

fn of_enum(descriptor: &EnumDescriptorProto, prefix: &str, lines: &mut Lines) {
    for value in &descriptor.value {
        lines.insert(format!(
            "enum\t{prefix}{}\t{}\t{}\t\t",
            descriptor.name(),
            value.name(),
            value.number()
        ));
    }
}

fn last(type_name: &str) -> &str {
    type_name.rsplit('.').next().unwrap_or(type_name)
}

fn is_map_entry(message: &DescriptorProto) -> bool {
    message.options.as_ref().is_some_and(|o| o.map_entry())
}

fn map_entry<'a>(
    field: &FieldDescriptorProto,
    owner: &'a DescriptorProto,
) -> Option<&'a DescriptorProto> {
    owner.nested_type.iter().find(|nested| {
        is_map_entry(nested)
            && field
                .type_name()
                .ends_with(&format!(".{}.{}", owner.name(), nested.name()))
    })
}

fn type_of(field: &FieldDescriptorProto, owner: &DescriptorProto) -> String {
    if let Some(entry) = map_entry(field, owner) {
        let [key, value] = &entry.field[..] else {
            panic!("{}: a map entry has a key and a value", entry.name());
        };
        return format!("map<{},{}>", type_of(key, entry), type_of(value, entry));
    }
    match field.r#type() {
        Type::Message | Type::Enum => last(field.type_name()).to_owned(),
        scalar => scalar.as_str_name().replace("TYPE_", "").to_lowercase(),
    }
}

fn label_of(field: &FieldDescriptorProto, owner: &DescriptorProto) -> &'static str {
    if field.options.as_ref().is_some_and(|o| o.deprecated()) {
        "deprecated"
    } else if field.label() == Label::Repeated && map_entry(field, owner).is_none() {
        "repeated"
    } else {
        ""
    }
}

#[test]
fn the_definitions_equal_the_table_of_cri_v1() {
    let set = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let mut ours = Lines::new();
    for file in &set.file {
        assert_eq!(file.package(), "runtime.v1", "package of {}", file.name());
        file.service.iter().for_each(|s| of_service(s, &mut ours));
        file.message_type
            .iter()
            .for_each(|m| of_message(m, &mut ours));
        file.enum_type
            .iter()
            .for_each(|e| of_enum(e, "", &mut ours));
    }
    let table: Lines = include_str!("cri-v1-fields.tsv")
        .lines()
        .skip(1)
        .map(str::to_owned)
        .collect();
    let missing: Vec<_> = table.difference(&ours).collect();
    let extra: Vec<_> = ours.difference(&table).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "missing: {missing:#?}\nextra: {extra:#?}"
    );
    let count = |kind: &str| ours.iter().filter(|l| l.starts_with(kind)).count();
    assert_eq!((count("rpc\t"), count("message\t")), (43, 175));
}
