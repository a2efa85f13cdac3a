"""An independent client (Debian's python3-boto3) against the server of the tests: every operation, and every error that it can cause. Prints one JSON object: what was seen.

Arguments: the server's URL, a region. Credentials come from the environment.
"""

import base64
import hashlib
import json
import sys

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

URL, REGION = sys.argv[1:3]
BLOCK = 524288


def client(service, attempts=1, **more):
    config = Config(retries={"total_max_attempts": attempts, "mode": "standard"})
    return boto3.client(service, endpoint_url=URL, region_name=REGION, config=config, **more)


def checksum(data):
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def failure(call, **arguments):
    """[code, reason, status] of the error that a call must end in."""
    try:
        call(**arguments)
    except ClientError as error:
        answer = error.response
        return [answer["Error"]["Code"], answer.get("Reason"), answer["ResponseMetadata"]["HTTPStatusCode"]]
    return None


ebs, ec2, ssm, sts = client("ebs"), client("ec2"), client("ssm"), client("sts")
seen = {}


def put(snapshot, index, data, **more):
    arguments = {"BlockData": data, "DataLength": BLOCK, "Checksum": checksum(data), "ChecksumAlgorithm": "SHA256"}
    arguments.update(more)
    return {"SnapshotId": snapshot, "BlockIndex": index, **arguments}


tags = [{"Key": "Name", "Value": "it's <a> & \"b\""}]
first = ebs.start_snapshot(VolumeSize=1, Tags=tags, Description="one", ClientToken="t1")
seen["started"] = {key: first[key] for key in ("Status", "VolumeSize", "BlockSize", "Description", "Tags")}
again = ebs.start_snapshot(VolumeSize=1, Tags=tags, Description="one", ClientToken="t1")
seen["sameToken"] = again["SnapshotId"] == first["SnapshotId"]
seen["otherParameters"] = failure(ebs.start_snapshot, VolumeSize=2, ClientToken="t1")
one = first["SnapshotId"]
blocks = {index: bytes([index % 251 + 1]) * BLOCK for index in (0, 3, 7, 2047)}
for index, data in blocks.items():
    answer = ebs.put_snapshot_block(**put(one, index, data, Progress=50))
    assert answer["Checksum"] == checksum(data)
ebs.put_snapshot_block(**put(one, 3, blocks[3]))
seen["badChecksum"] = failure(ebs.put_snapshot_block, **put(one, 4, blocks[3], Checksum=checksum(b"x")))
seen["outside"] = failure(ebs.put_snapshot_block, **put(one, 2048, blocks[3]))
seen["badId"] = failure(ebs.put_snapshot_block, **put("snap-XYZ", 0, blocks[3]))
seen["absent"] = failure(ebs.put_snapshot_block, **put("snap-00", 0, blocks[3]))
seen["shortBlock"] = failure(ebs.put_snapshot_block, **put(one, 5, b"x" * 100, DataLength=100))
seen["otherBytes"] = failure(ebs.put_snapshot_block, **put(one, 3, blocks[7]))
seen["readPending"] = failure(ebs.list_snapshot_blocks, SnapshotId=one)
linear = base64.b64encode(hashlib.sha256(b"".join(hashlib.sha256(blocks[i]).digest() for i in sorted(blocks))).digest())
done = ebs.complete_snapshot(
    SnapshotId=one,
    ChangedBlocksCount=len(blocks),
    Checksum=linear.decode(),
    ChecksumAlgorithm="SHA256",
    ChecksumAggregationMethod="LINEAR",
)
seen["completed"] = done["Status"]
described = ec2.describe_snapshots(SnapshotIds=[one])["Snapshots"][0]
seen["described"] = [described["State"], described["VolumeSize"], described["Tags"], described["Encrypted"]]
seen["putCompleted"] = failure(ebs.put_snapshot_block, **put(one, 9, blocks[3]))

child = ebs.start_snapshot(VolumeSize=2, ParentSnapshotId=one, Tags=[{"Key": "Name", "Value": "child"}])
seen["childOf"] = child["ParentSnapshotId"] == one
two = child["SnapshotId"]
changed = {3: b"\0" * BLOCK, 100: b"z" * BLOCK, 4095: b"y" * BLOCK}
for index, data in changed.items():
    ebs.put_snapshot_block(**put(two, index, data))
ebs.complete_snapshot(SnapshotId=two, ChangedBlocksCount=3)


def pages(call, key, **arguments):
    items, count, token = [], 0, None
    while True:
        answer = call(**arguments, MaxResults=100, **({"NextToken": token} if token else {}))
        count += 1
        items += answer[key]
        token = answer.get("NextToken")
        if not token:
            return items, count


listed, seen["pages"] = pages(ebs.list_snapshot_blocks, "Blocks", SnapshotId=two)
seen["listed"] = [block["BlockIndex"] for block in listed]
for block in listed:
    got = ebs.get_snapshot_block(SnapshotId=two, BlockIndex=block["BlockIndex"], BlockToken=block["BlockToken"])
    data = got["BlockData"].read()
    assert data == changed.get(block["BlockIndex"], blocks.get(block["BlockIndex"])), block
    assert got["Checksum"] == checksum(data) and got["DataLength"] == BLOCK
difference, _ = pages(ebs.list_changed_blocks, "ChangedBlocks", FirstSnapshotId=one, SecondSnapshotId=two)
seen["changed"] = [[b["BlockIndex"], "FirstBlockToken" in b, "SecondBlockToken" in b] for b in difference]
from_eight, _ = pages(ebs.list_snapshot_blocks, "Blocks", SnapshotId=two, StartingBlockIndex=8)
seen["start"] = [block["BlockIndex"] for block in from_eight]
seen["badBlockToken"] = failure(ebs.get_snapshot_block, SnapshotId=two, BlockIndex=1, BlockToken=listed[0]["BlockToken"])
seen["badPageToken"] = failure(ebs.list_snapshot_blocks, SnapshotId=two, NextToken="AAAA")
unrelated = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
ebs.complete_snapshot(SnapshotId=unrelated, ChangedBlocksCount=0)
seen["unrelated"] = failure(ebs.list_changed_blocks, FirstSnapshotId=unrelated, SecondSnapshotId=two)
miscounted = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
ebs.complete_snapshot(SnapshotId=miscounted, ChangedBlocksCount=5)
seen["miscounted"] = ec2.describe_snapshots(SnapshotIds=[miscounted])["Snapshots"][0]["State"]

seen["sizeZero"] = failure(ebs.start_snapshot, VolumeSize=65537)
seen["smallerThanParent"] = failure(ebs.start_snapshot, VolumeSize=1, ParentSnapshotId=two)
seen["encryptedChild"] = failure(ebs.start_snapshot, VolumeSize=2, ParentSnapshotId=two, Encrypted=True)
seen["keyAlone"] = failure(ebs.start_snapshot, VolumeSize=2, KmsKeyArn="arn:aws:kms:eu-central-1:111122223333:key/0a")
secret = ebs.start_snapshot(VolumeSize=2, Encrypted=True)["SnapshotId"]
ebs.complete_snapshot(SnapshotId=secret, ChangedBlocksCount=0)
heir = ebs.start_snapshot(VolumeSize=2, ParentSnapshotId=secret)["SnapshotId"]
seen["inherits"] = ec2.describe_snapshots(SnapshotIds=[heir])["Snapshots"][0]["Encrypted"]
seen["pendingParent"] = failure(ebs.start_snapshot, VolumeSize=2, ParentSnapshotId=heir)

ec2.create_tags(Resources=[one, two], Tags=[{"Key": "team", "Value": "x"}])
paginator = ec2.get_paginator("describe_snapshots")
found = paginator.paginate(OwnerIds=["self"], Filters=[{"Name": "tag:team", "Values": ["x"]}]).build_full_result()
seen["byTag"] = sorted(each["SnapshotId"] for each in found["Snapshots"]) == sorted([one, two])
seen["noSnapshot"] = failure(ec2.describe_snapshots, SnapshotIds=["snap-0abc"])
fast = ec2.enable_fast_snapshot_restores(AvailabilityZones=[REGION + "a", "moon-1a"], SourceSnapshotIds=[two])
seen["fast"] = [fast["Successful"][0]["State"], fast["Unsuccessful"][0]["FastSnapshotRestoreStateErrors"][0]["AvailabilityZone"]]
restores = ec2.describe_fast_snapshot_restores(Filters=[{"Name": "snapshot-id", "Values": [two]}])
seen["restores"] = [each["State"] for each in restores["FastSnapshotRestores"]]
versions = []
for template in ec2.get_paginator("describe_launch_templates").paginate().build_full_result()["LaunchTemplates"]:
    all_of = ec2.get_paginator("describe_launch_template_versions")
    for version in all_of.paginate(LaunchTemplateId=template["LaunchTemplateId"]).build_full_result()["LaunchTemplateVersions"]:
        for device in version["LaunchTemplateData"]["BlockDeviceMappings"]:
            versions.append([version["VersionNumber"], device["Ebs"]["SnapshotId"]])
seen["templates"] = versions
images = ec2.describe_images(Owners=["self"])["Images"]
seen["images"] = [[image["ImageId"], image["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]] for image in images]
ec2.delete_snapshot(SnapshotId=unrelated)
seen["deleted"] = failure(ec2.describe_snapshots, SnapshotIds=[unrelated])

seen["parameter"] = ssm.put_parameter(Name="/warm/x", Value=one, Type="String")["Version"]
seen["parameterExists"] = failure(ssm.put_parameter, Name="/warm/x", Value=two, Type="String")
seen["overwritten"] = ssm.put_parameter(Name="/warm/x", Value=two, Type="String", Overwrite=True)["Version"]
seen["read"] = ssm.get_parameter(Name="/warm/x")["Parameter"]["Value"] == two
role = sts.assume_role(RoleArn="arn:aws:iam::111122223333:role/ci", RoleSessionName="me")["Credentials"]
assumed = client(
    "ebs",
    aws_access_key_id=role["AccessKeyId"],
    aws_secret_access_key=role["SecretAccessKey"],
    aws_session_token=role["SessionToken"],
)
seen["asRole"] = len(pages(assumed.list_snapshot_blocks, "Blocks", SnapshotId=one)[0])
stranger = client("ebs", aws_access_key_id="AKIANOBODY", aws_secret_access_key="x")
seen["stranger"] = failure(stranger.list_snapshot_blocks, SnapshotId=one)
wrong = client("ec2", aws_access_key_id=role["AccessKeyId"], aws_secret_access_key="x", aws_session_token="y")
seen["wrongSecret"] = failure(wrong.describe_snapshots)
patient = client("ebs", attempts=4)
seen["afterFaults"] = len(pages(patient.list_snapshot_blocks, "Blocks", SnapshotId=two)[0])
print(json.dumps(seen))
